"""Train a language model with a loss chosen by name, on MinT or on your own machine.

What a plugin's author and a Python user need is here; `mint_train.plugins.hookspecs` is the contract.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mint_train.errors import ContractError, DoesNotFit, MintTrainError, RowError
from mint_train.plugins.authoring import loss
from mint_train.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from mint_train.batches.batch import Batch
    from mint_train.batches.datums import attach
    from mint_train.batches.logprobs import (
        log_ratios,
        mean_logprobs,
        reference_sequence_logprobs,
        sequence_logprobs,
    )
    from mint_train.batches.sums import segment_sums
    from mint_train.run_folder.saved import load_run
    from mint_train.training.training import train

# these import torch, which `mint-train --help` must not wait for
_LATE = {
    "Batch": "batches.batch",
    "attach": "batches.datums",
    "log_ratios": "batches.logprobs",
    "mean_logprobs": "batches.logprobs",
    "reference_sequence_logprobs": "batches.logprobs",
    "segment_sums": "batches.sums",
    "sequence_logprobs": "batches.logprobs",
    "load_run": "run_folder.saved",
    "train": "training.training",
}

__all__ = [
    "Batch",
    "ContractError",
    "DoesNotFit",
    "MintTrainError",
    "RowError",
    "attach",
    "hookimpl",
    "load_run",
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
    close = get_close_matches(name, __all__, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise AttributeError(f"module 'mint_train' has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    """List what is imported late too."""
    return sorted({*globals(), *__all__})
