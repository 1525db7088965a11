"""Train a language model with a loss chosen by name, on MinT or on your own machine.

Each command is a function: `train`, `resume`, `evaluate`, `sample`, `pairs`, `winrate`, `compare`, `plot`,
`export`; `load_run` reads a run folder. What a plugin's author needs is in `mint_train.plugin`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mint_train.errors import ContractError, DoesNotFit, MintTrainError, RowError
from mint_train.plugins.authoring import loss
from mint_train.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from mint_train.api.policies import pairs, sample, winrate
    from mint_train.api.runs import compare, evaluate, export, plot, resume, train
    from mint_train.batches.batch import Batch
    from mint_train.batches.datums import attach
    from mint_train.batches.logprobs import (
        log_ratios,
        mean_logprobs,
        reference_sequence_logprobs,
        sequence_logprobs,
    )
    from mint_train.batches.sums import segment_sums
    from mint_train.report.saved import load_run

# these import torch, which `mint-train --help` must not wait for
_LATE = {
    "Batch": "batches.batch",
    "attach": "batches.datums",
    "log_ratios": "batches.logprobs",
    "mean_logprobs": "batches.logprobs",
    "reference_sequence_logprobs": "batches.logprobs",
    "segment_sums": "batches.sums",
    "sequence_logprobs": "batches.logprobs",
    "load_run": "report.saved",
    **dict.fromkeys(("compare", "evaluate", "export", "plot", "resume", "train"), "api.runs"),
    **dict.fromkeys(("pairs", "sample", "winrate"), "api.policies"),
}

__all__ = [
    "Batch",
    "ContractError",
    "DoesNotFit",
    "MintTrainError",
    "RowError",
    "attach",
    "compare",
    "evaluate",
    "export",
    "hookimpl",
    "load_run",
    "log_ratios",
    "loss",
    "mean_logprobs",
    "pairs",
    "plot",
    "reference_sequence_logprobs",
    "resume",
    "sample",
    "segment_sums",
    "sequence_logprobs",
    "train",
    "winrate",
]


def __getattr__(name: str) -> Any:
    """Import the parts that need torch when they are first used."""
    if name in _LATE:
        return getattr(import_module(f"mint_train.{_LATE[name]}"), name)
    from difflib import get_close_matches

    close = get_close_matches(name, __all__, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise AttributeError(f"module 'mint_train' has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    """List what is imported late too."""
    return sorted({*globals(), *__all__})
