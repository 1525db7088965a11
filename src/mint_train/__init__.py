"""Train a language model with a loss chosen by name, on MinT or on your own machine.

What a plugin's author and a Python user need is here; `mint_train.hookspecs` is the contract.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mint_train.authoring import loss
from mint_train.errors import ContractError, DoesNotFit, MintTrainError, RowError
from mint_train.hookspecs import hookimpl

if TYPE_CHECKING:
    from mint_train.batches import (
        Batch,
        attach,
        log_ratios,
        mean_logprobs,
        reference_sequence_logprobs,
        segment_sums,
        sequence_logprobs,
    )
    from mint_train.training import train

# these import torch, which `mint-train --help` must not wait for
_LATE = {
    "Batch": "batches",
    "attach": "batches",
    "log_ratios": "batches",
    "mean_logprobs": "batches",
    "reference_sequence_logprobs": "batches",
    "segment_sums": "batches",
    "sequence_logprobs": "batches",
    "train": "training",
}

__all__ = [
    "Batch",
    "ContractError",
    "DoesNotFit",
    "MintTrainError",
    "RowError",
    "attach",
    "hookimpl",
    "log_ratios",
    "loss",
    "mean_logprobs",
    "reference_sequence_logprobs",
    "segment_sums",
    "sequence_logprobs",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import the parts that need torch when they are first used."""
    if name in _LATE:
        return getattr(import_module(f"mint_train.{_LATE[name]}"), name)
    raise AttributeError(f"module 'mint_train' has no attribute {name!r}")
