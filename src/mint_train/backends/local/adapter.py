"""The LoRA adapter that is put on a base model: its rank, its alpha, and the layers that get one."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mint_train.backends.hub_model import split_revision
from mint_train.backends.local.memory import free_bytes
from mint_train.errors import OptionError, UserError
from mint_train.settings.model import LAYER_KINDS, Settings

LORA_ALPHA = 32
"""The service's alpha, so that a learning rate means the same on both backends."""
ADAPTER_BYTES = 16
"""Bytes per parameter of an adapter in float32: the weight, its gradient and two moments."""
OF_KIND = {"attention": ("attn", "attention"), "mlp": ("mlp", "feed_forward", "ffn", "experts")}
"""What the name of a module holds whose linear layers are of a kind."""


@dataclass(frozen=True, slots=True)
class LoraShape:
    """What decides an adapter's parameters and how they count."""

    rank: int
    alpha: float = LORA_ALPHA
    """The adapter's output is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names or kinds of the layers that get an adapter; empty for all linear layers."""

    @classmethod
    def of(cls, settings: Settings) -> LoraShape:
        """Return the shape that settings ask for."""
        return cls(settings.rank, settings.lora_alpha or LORA_ALPHA, settings.lora_targets)


def add_adapter(base: PreTrainedModel, shape: LoraShape, seed: int) -> PeftModel:
    """Add a fresh LoRA adapter; initially it changes nothing (B = 0).

    Raises:
        OptionError: a target is not a layer of the model.
        UserError: the adapter does not fit into the memory.
    """
    targets = target_layers(base, shape.targets)
    check_memory(base, shape.rank, targets)
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=cast(int, shape.alpha),  # PEFT takes a fraction too
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT reads an attribute that transformers has renamed
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        return get_peft_model(base, config)


def target_layers(base: PreTrainedModel, targets: tuple[str, ...]) -> list[str]:
    """Return the names of the layers that get an adapter.

    Raises:
        OptionError: a target is neither a kind nor the name of a linear layer, or the model has none of it.
    """
    known: dict[str, set[str]] = {kind: set() for kind in LAYER_KINDS}
    for path, layer in linear_layers(base):
        name = path.rpartition(".")[2]
        known.setdefault(name, set()).add(name)
        kind = "unembed" if layer is base.get_output_embeddings() else kind_of(path)
        known.setdefault(kind, set()).add(name)
    chosen: set[str] = set()
    for target in targets or list(known):
        if targets and not known.get(target):
            names = ", ".join(sorted(name for name, layers in known.items() if layers))
            raise OptionError(f"--lora-targets {target}: this model has no such linear layer; it has {names}")
        chosen |= known[target]
    return sorted(chosen)


def check_memory(base: PreTrainedModel, rank: int, targets: Collection[str]) -> None:
    """Refuse an adapter that does not fit into the memory, before the system ends the program.

    Raises:
        UserError: with what it needs and what is free.
    """
    layers = [layer for path, layer in linear_layers(base) if path.rpartition(".")[2] in targets]
    needed = ADAPTER_BYTES * rank * sum(sum(cast(torch.Tensor, layer.weight).shape) for layer in layers)
    free = free_bytes(base.device)
    if needed > free:
        raise UserError(
            f"--rank {rank}: the adapter and its optimiser need {needed / 1e9:,.1f} GB, "
            f"and {free / 1e9:,.1f} GB are free; lower it"
        )


def linear_layers(base: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Yield path and layer of each linear layer, the output layer too unless it is tied to the embedding."""
    output = base.get_output_embeddings()
    tied = base.config.tie_word_embeddings
    for path, module in base.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and not (tied and module is output):
            yield path, module


def kind_of(path: str) -> str:
    """Return the kind of a layer by the module that it is in; its own name where it is of no kind."""
    within, _, name = path.rpartition(".")
    parent = within.rpartition(".")[2].lower()
    return next((kind for kind, parts in OF_KIND.items() if any(part in parent for part in parts)), name)


def name_base_without_path(model: PeftModel) -> None:
    """Let an adapter name a base model by its folder alone, whose path is nobody else's, or by its commit."""
    for config in model.peft_config.values():
        name = str(config.base_model_name_or_path or "")
        if Path(name).exists():
            config.base_model_name_or_path = Path(name).resolve().name
        else:
            config.base_model_name_or_path, config.revision = split_revision(name)
