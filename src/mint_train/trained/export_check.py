"""Whether exported weights are the policy: its own logprobs beside theirs, on rows of the run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from mint_train.backends.base import TrainingClient
from mint_train.backends.choose import choose_backend
from mint_train.backends.forward_logprobs import forward_logprobs
from mint_train.backends.hub_model import split_revision
from mint_train.backends.peft_folder import PeftConfig
from mint_train.batches.groups import Group
from mint_train.errors import BackendError, UserError
from mint_train.groups.build import build_dataset
from mint_train.groups.held_out import held_out_or_trained
from mint_train.losses.loss import Loss
from mint_train.observers.model_card import GGUF_FILE
from mint_train.observers.terminal import echo_problem
from mint_train.settings.model import Settings
from mint_train.trained.find import Trained
from mint_train.trained.forms import MERGED_MODEL, PEFT, Form

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

    from mint_train.backends.local.adapter import LoraShape
    from mint_train.backends.local.client import LocalTrainingClient

ROWS = 8
LARGEST_SHARE = 0.1
"""Of what training changed, the most that exported weights may differ by."""
ROUNDING = 0.02
"""Nats that a text's logprobs may differ by in any case: a service computes in another order, or dtype."""


@dataclass(frozen=True, slots=True)
class ExportCheck:
    """How far exported weights are from the policy, in nats: the largest difference of a text's logprobs."""

    texts: int
    difference: float
    moved: float
    """The same between the base model and the policy: what training changed."""


def check_export(trained: Trained, form: Form, adapter: Path, written: Path) -> ExportCheck:
    """Compare the policy's logprobs with those of exported weights.

    Args:
        trained: the policy.
        form: the exported weights' form.
        adapter: the adapter that was exported, in PEFT's format.
        written: the folder of the exported weights.

    Raises:
        UserError: rows or base model cannot be had on this machine.
        BackendError: the exported weights are not the policy's.
    """
    from mint_train.backends.local.adapter import LoraShape
    from mint_train.backends.local.load import open_local_client

    model, config = base_on_this_machine(trained.backend.model), PeftConfig.read(adapter)
    shape = LoraShape(config.rank, config.alpha, trained.settings.lora_targets)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        exported = open_local_client(model, shape, 0, folder)
        check_layers(trained, exported.model, config)
        groups = some_groups(trained.settings, trained.open_loss(), exported)
        base = text_logprobs(groups, exported)  # a fresh adapter changes nothing
        exported = with_exported(exported, shape, form, written)
        theirs = text_logprobs(groups, exported)
        # an adapter is exported for the weights that the base model's files hold, whatever it was trained on
        backend = choose_backend(trained.settings.model_copy(update={"quantize": None}))
        policy = backend.open_client(folder, echo_problem, trains=False)
        try:
            policy.load_state_with_optimizer(trained.checkpoint.state).result()
            own = text_logprobs(groups, policy)
        finally:
            policy.close()
    found = ExportCheck(len(own), largest(own - theirs), largest(own - base))
    if not found.difference <= max(ROUNDING, LARGEST_SHARE * found.moved):
        raise BackendError(
            f"the exported weights are not the policy: the logprobs of a text differ by up to "
            f"{found.difference:.4g} nats, where training moved them by up to {found.moved:.4g}"
        )
    return found


def with_exported(
    client: LocalTrainingClient, shape: LoraShape, form: Form, written: Path
) -> LocalTrainingClient:
    """Return a client that computes with exported weights.

    Args:
        client: the base model with a fresh adapter, which an exported adapter is loaded into.
        shape: the adapter's shape.
        form: the exported weights' form.
        written: their folder.

    Raises:
        BackendError: they cannot be loaded.
    """
    from mint_train.backends.local.load import open_client_of, open_local_client

    if form is PEFT:
        client.load_state(str(written)).result()
        return client
    if form is MERGED_MODEL:
        return open_local_client(str(written), shape, 0, client.folder)
    from mint_train.backends.local.gguf_file import load_gguf

    read = load_gguf(written / GGUF_FILE, client.model.config)
    return open_client_of(read, client.tokenizer, shape, client.folder)


def base_on_this_machine(model: str) -> str:
    """Return the folder of a base model: its own, or the one that the hub's cache has.

    Raises:
        UserError: it is not on this machine, and is not downloaded unasked.
    """
    if Path(model).is_dir():
        return model
    from huggingface_hub import snapshot_download

    try:
        name, revision = split_revision(model)
        return str(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        raise UserError(f"the base model {model} is not on this machine") from None


def some_groups(settings: Settings, loss: Loss, client: TrainingClient) -> Sequence[Group]:
    """Return groups of the first held-out rows, or of the first rows that the run was trained on.

    Raises:
        MintTrainError: the rows cannot be read.
    """
    examples = held_out_or_trained(settings, loss)
    some = examples.only(frozenset(range(min(ROWS, len(examples)))))
    return build_dataset(some, loss, client.get_tokenizer(), settings).groups[:ROWS]


def text_logprobs(groups: Sequence[Group], client: TrainingClient) -> torch.Tensor:
    """Return the sum of the trained tokens' logprobs of each datum, nats, float64 `[datums]`."""
    datums = [datum for group in groups for datum in group.datums]
    masks = [torch.from_numpy(weights) != 0 for group in groups for weights in group.weights]
    logprobs = forward_logprobs(datums, client)
    return torch.stack([one[mask].double().sum() for one, mask in zip(logprobs, masks, strict=True)])


def largest(differences: torch.Tensor) -> float:
    """Return the largest absolute value."""
    return float(differences.abs().max())


def check_layers(trained: Trained, whole: PeftModel, config: PeftConfig) -> None:
    """Refuse an adapter that lacks a layer that the run trained: some services keep none of the output layer.

    Args:
        trained: the policy.
        whole: the base model with an adapter on each layer that the run trained.
        config: what the exported adapter has.

    Raises:
        BackendError: naming the layers.
    """
    trained_on = cast("LoraConfig", whole.peft_config[str(whole.active_adapter)]).target_modules
    missing = set(trained_on or ()) - set(config.targets)
    if config.targets and missing:
        raise BackendError(
            f"the service gives no matrices of {', '.join(sorted(missing))} away, which {trained.name} asked "
            "for, so what it gives may not be the policy; a run that can be exported is trained with "
            "--lora-targets attention,mlp"
        )
