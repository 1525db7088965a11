"""Reference logprobs: computed once per example before the first step, kept on disk, read group by group."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from mint_train.backends.base import Backend, TrainingClient
from mint_train.backends.forward_logprobs import forward_logprobs
from mint_train.backends.start import digest as digest_of_adapter
from mint_train.batches.groups import Group, Groups
from mint_train.groups.reference_file import is_whole, read_file, write_file
from mint_train.groups.reference_store import ReferenceStore
from mint_train.groups.token_file import joined
from mint_train.run_folder.description import StartDescription
from mint_train.run_folder.records import ON_THE_SERVICE, STATE_FILE
from mint_train.run_folder.token_counts import Sent, uncounted
from mint_train.settings.model import Settings

INITIAL = "initial"
"""The reference that is the policy before its first step: a fresh adapter changes nothing."""
REFERENCE_FOLDER = "reference"
"""Where a run keeps its reference logprobs, those of held-out rows too."""
CHUNK = 256
"""Groups whose logprobs are one file, which is the most that a crash loses of what has come back."""
OPEN_FILES = 128


class ReferencedGroups(Groups):
    """Groups with their reference logprobs, read from the disk too."""

    def __init__(self, groups: Groups, files: Sequence[Path]) -> None:
        self._groups = groups
        self._files = files
        self._open = lru_cache(OPEN_FILES)(read_file)

    def __len__(self) -> int:
        return len(self._groups)

    def take(self, indices: Sequence[int]) -> list[Group]:
        """Read groups with their reference logprobs, in the order of their indices."""
        groups = self._groups.take(indices)
        arrays = joined([one for index in indices for one in self._logprobs(index)], np.float32)
        logprobs = map(torch.from_numpy, arrays)
        return [
            replace(group, reference_logprobs=tuple(islice(logprobs, len(group.datums)))) for group in groups
        ]

    def _logprobs(self, index: int) -> list[np.ndarray]:
        """Find the logprobs of a group's datums, as they lie in their file."""
        number, row = divmod(index, CHUNK)
        logprobs, starts = self._open(self._files[number])
        return [logprobs.view(datum) for datum in range(starts[row], starts[row + 1])]


@dataclass(frozen=True)
class KeptReference:
    """Where the logprobs of a run's reference are kept."""

    folder: Path
    """The run's own."""
    open_store: Callable[[], ReferenceStore] = ReferenceStore
    """Opens the one that runs share, if logprobs are missing in the folder."""


def with_reference(
    groups: Groups,
    client: TrainingClient,
    reference: str,
    kept: KeptReference,
    warn: Callable[[str], None] = lambda _: None,
    sent: Sent = uncounted,
) -> ReferencedGroups:
    """Give each group its reference logprobs: those that are kept, and forwards for the rest.

    Args:
        groups: the groups of the run.
        client: a training client whose policy is the reference: with "initial", one before its first step.
        reference: the reference's name; logprobs are found again under it and the tokens of their groups.
        kept: a file per chunk of groups is read where it exists, and written whole where it does not.
        warn: tells the user of a file that is broken and made anew.
        sent: is told the tokens of each request.

    Raises:
        BackendError: a forward failed.
        MintTrainError: the disk refuses; what was kept before stays.
    """
    starts = range(0, len(groups), CHUNK)
    files = [kept.folder / f"{digest(reference, groups[start : start + CHUNK])}.arrow" for start in starts]
    missing = {path: start for path, start in zip(files, starts, strict=True) if not is_whole(path, warn)}
    if missing:
        store = kept.open_store()
        with store.asked_once(next(iter(missing)), warn):
            missing = {path: start for path, start in missing.items() if not store.fetch(path, warn)}
            for path in write_missing(groups, client, missing, sent):
                store.keep(path, warn)
    return ReferencedGroups(groups, files)


def write_missing(
    groups: Groups, client: TrainingClient, missing: Mapping[Path, int], sent: Sent
) -> Iterator[Path]:
    """Ask for the logprobs of chunks of groups, and yield each file once it is written.

    Args:
        groups: the groups of the run.
        client: a client whose policy is the reference.
        missing: by file, the index of the first group of its chunk.
        sent: is told the tokens of each request.
    """

    def missing_groups() -> Iterator[Group]:
        for start in missing.values():
            yield from groups[start : start + CHUNK]

    logprobs = forward_logprobs((datum for group in missing_groups() for datum in group.datums), client, sent)
    for path, start in missing.items():
        sizes = [len(group.datums) for group in groups[start : start + CHUNK]]
        write_file(path, list(islice(logprobs, sum(sizes))), sizes)
        yield path


def open_reference(
    backend: Backend, reference: str, folder: Path, warn: Callable[[str], None]
) -> TrainingClient:
    """Open a client whose policy is a reference given by name: another base model, or a saved state.

    Raises:
        UserError: the service or this machine does not have it.
        BackendError: it cannot be loaded.
    """
    if reference.startswith(ON_THE_SERVICE) or (Path(reference) / STATE_FILE).exists():
        client = backend.open_client(folder, warn, trains=False)
        client.load_state_with_optimizer(reference).result()
        return client
    return backend.open_client(folder, warn, model=reference, trains=False)


def store_of(
    client: TrainingClient, settings: Settings, reference: str, start: StartDescription | None
) -> ReferenceStore:
    """Return the store of a reference, which keeps nothing where another reference might have its key.

    Args:
        client: whose policy is the reference.
        settings: those of the run, whose adapter has their shape.
        reference: the reference's name.
        start: the adapter that the run begins with; None for a fresh one, which changes nothing.
    """
    base = client.base_identity()
    state = reference != INITIAL and (
        reference.startswith(ON_THE_SERVICE) or (Path(reference) / STATE_FILE).exists()
    )
    if base is None or not (state or (reference == INITIAL and start is not None)):
        return ReferenceStore.of(base)
    if state:
        sha256 = None if reference.startswith(ON_THE_SERVICE) else digest_of_adapter(reference)
    else:
        sha256 = start.sha256 if start else None
    if sha256 is None:  # a state on the service, where another one may get its name
        return ReferenceStore()
    shape = [settings.rank, settings.lora_alpha, sorted(settings.lora_targets)]
    return ReferenceStore.of({**base, "adapter": sha256, "shape": shape})


def digest(reference: str, groups: Sequence[Group]) -> str:
    """Identify groups under a reference by their tokens."""
    found = hashlib.sha256(reference.encode())
    for group in groups:
        found.update(np.array([len(group.lengths), *group.lengths]).tobytes())
        for arrays in group.arrays:
            found.update(arrays.inputs.tobytes())
            found.update(arrays.targets.tobytes())
    return found.hexdigest()[:32]
