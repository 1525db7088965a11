"""DPO-RK: DPO that learns from ties too, by Rao and Kupper's model of comparisons.

A row with `tie` set to true says that neither completion is better, whatever their order; without the field
the chosen one is.

In the formula w is the chosen and l the rejected completion, d = beta (h_w - h_l), h the log-ratio of policy
and reference, and a = log nu.

Formula: -log sigma(d - a) for a pair, -log((nu^2 - 1) sigma(d - a) sigma(-d - a)) for a tie
Paper: Chen et al., 2024, arXiv 2409.17431; Rao and Kupper, 1967
Defaults: nu 3 makes a tie of equal completions as likely as not, the paper's choice, second hand; beta is
    DPO's
Use: pairs of which some are ties, which DPO would have to leave out
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from mint_train.plugin import AttachedDatum, Batch, Forms, Metric, Renderer, RowError, hookimpl, kind
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs
from mint_train_preferences.fields import RicherPair, Values, flatten_richer, forms_with
from mint_train_preferences.options import AnchoredOptions

EXTENDS = "dpo"
TIE = "tie"


class TieOptions(AnchoredOptions):
    """Beta, and how likely ties are."""

    nu: float = Field(default=3.0, gt=1, description="How likely ties are; near 1, hardly.")


def read_tie(row: Mapping[str, Any]) -> Values:
    """Read `tie`, false where it is missing."""
    tie = 0.0 if row.get(TIE) is None else float(truth(row[TIE]))
    return {TIE: (tie, tie)}


def truth(value: object) -> bool:
    """Return what `tie` says; a CSV has it as text.

    Raises:
        RowError: neither true nor false.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise RowError(TIE, f"must be true or false, not {kind(value)}")


FORMS = forms_with(read_tie, [TIE])
"""Every form of a pair, or of a tie."""


def are_ties(batch: Batch) -> torch.Tensor:
    """Return which pairs are ties, bool `[pairs]`."""
    return batch.attached(TIE)[::2] == 1


def tie_metrics(pairs: Pairs, ties: torch.Tensor, beta: float) -> dict[str, float]:
    """Summarise pairs and ties: the rewards are those of all, the share is that of ties."""
    return pairs.metrics(pairs.rewards(beta)) | {"ties": float(ties.double().mean())}


@hookimpl
def loss_options() -> type[TieOptions]:
    """Return the options of DPO-RK."""
    return TieOptions


@hookimpl
def bundled_rows() -> Path:
    """Return eight pairs, two of them ties, to try the loss on."""
    return Path(__file__).with_name("tied_pairs.jsonl")


@hookimpl
def row_forms() -> Forms:
    """Return every form of a pair with `tie`."""
    return FORMS


@hookimpl
def flatten(example: RicherPair, renderer: Renderer) -> Sequence[AttachedDatum]:
    """Flatten a pair into [chosen, rejected], with whether it is a tie attached to both."""
    return flatten_richer(example, renderer)


@hookimpl
def compute_loss(batch: Batch, logprobs: Logprobs, options: TieOptions) -> LossAndMetrics:
    """Compute -log of what Rao and Kupper's model gives a win, or a tie; the mean over rows."""
    pairs, ties = Pairs.of(batch, logprobs), are_ties(batch)
    margins, threshold = options.beta * pairs.margins, math.log(options.nu)
    won, lost = logsigmoid(margins - threshold), logsigmoid(-margins - threshold)
    losses = torch.where(ties, -(math.log(options.nu**2 - 1) + won + lost), -won)
    return batch.mean(losses), tie_metrics(pairs, ties, options.beta)


@hookimpl
def metrics() -> dict[str, Metric]:
    """Describe the share of ties."""
    return {"ties": Metric(".2f", kind="share")}
