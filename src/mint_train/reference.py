"""Reference logprobs: computed once per example before the first step, and kept in the run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mint_train.backends.base import TrainingClient
from mint_train.backends.choose import open_client
from mint_train.batches import Group
from mint_train.errors import BackendError
from mint_train.files import whole_file
from mint_train.forward import forward_logprobs
from mint_train.records import ON_THE_SERVICE
from mint_train.sdk import Datum
from mint_train.settings import Settings

INITIAL = "initial"
"""The reference that is the policy before its first step: a fresh adapter changes nothing."""
REFERENCE_FILE = "reference.safetensors"
EVAL_REFERENCE_FILE = "eval_reference.safetensors"
"""That of held-out data, which is written after the run too."""

Key = str


def with_reference(
    groups: Sequence[Group], client: TrainingClient, reference: str, path: Path
) -> list[Group]:
    """Give each group its reference logprobs: those kept in a file, and forwards for the rest.

    Args:
        groups: the groups of the run.
        client: a training client whose policy is the reference: with "initial", one before its first step.
        reference: the reference's name, part of the key under which its logprobs are kept.
        path: the safetensors file; it is read where it exists, and written whole where it lacked some.

    Raises:
        BackendError: the file is broken, or a forward failed.
    """
    known = read_known(path)
    keys = [[datum_key(reference, datum) for datum in group.datums] for group in groups]
    missing = {
        key: datum
        for group, group_keys in zip(groups, keys, strict=True)
        for key, datum in zip(group_keys, group.datums, strict=True)
        if key not in known
    }
    if missing:
        known |= zip(missing, forward_logprobs(list(missing.values()), client), strict=True)
        write_known(path, known)
    return [
        replace(group, reference_logprobs=tuple(known[key] for key in group_keys))
        for group, group_keys in zip(groups, keys, strict=True)
    ]


def open_reference(settings: Settings, backend: str, reference: str, folder: Path) -> TrainingClient:
    """Open a client whose policy is a reference given by name: another base model, or a saved state.

    Raises:
        UserError: the service or this machine does not have it.
        BackendError: it cannot be loaded.
    """
    if reference.startswith(ON_THE_SERVICE) or (Path(reference) / "state.safetensors").exists():
        client = open_client(settings, backend, folder)
        client.load_state_with_optimizer(reference).result()
        return client
    return open_client(settings.model_copy(update={"model": reference}), backend, folder)


def datum_key(reference: str, datum: Datum) -> Key:
    """Identify a datum under a reference by its tokens."""
    digest = hashlib.sha256(reference.encode())
    digest.update(repr(datum.model_input.to_ints()).encode())
    digest.update(repr(list(datum.loss_fn_inputs["target_tokens"].data)).encode())
    return digest.hexdigest()


def read_known(path: Path) -> dict[Key, torch.Tensor]:
    """Read the kept logprobs, or none where there is no file.

    Raises:
        BackendError: the file is broken.
    """
    if not path.exists():
        return {}
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BackendError(f"{path} is broken ({error}); delete it to compute the reference again") from error


def write_known(path: Path, known: dict[Key, torch.Tensor]) -> None:
    """Write the logprobs, whole or not at all.

    Raises:
        MintTrainError: the disk refuses; what was kept before stays.
    """
    try:
        with whole_file(path) as beside:
            save_file(known, beside)
    except SafetensorError as error:
        raise BackendError(f"{path} cannot be written: {error}") from error
