"""ODPO: DPO with an offset that says by how much the chosen completion is better.

Formula: -log sigma(beta (h_w - h_l) - alpha f(s_w - s_l)), s the row's scores;
    f is log, or the identity with `scale=linear`
Paper: Amini et al., 2024, arXiv 2402.10571, section 3
Defaults: the authors' code
Use: rows that carry the scores of a judge (UltraFeedback), `chosen_score` and `rejected_score`, or `margin`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from mint_train.plugin import (
    AttachedDatum,
    Batch,
    Forms,
    Renderer,
    RowError,
    attach,
    hookimpl,
    number,
)
from mint_train_dpo import plugin as dpo
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs, bradley_terry, chosen_and_rejected
from mint_train_dpo.rows import FORMS as PAIR_FORMS
from mint_train_preferences.fields import ExtendedPair
from mint_train_preferences.options import AnchoredOptions

EXTENDS = "dpo"
SIDES = ("chosen", "rejected")
MARGIN = "margin"
SCORE_COLUMNS = ("{}_score", "score_{}", "{}_rating", "rating_{}", "{}_avg_rating")
"""What data sets call the scores of the two sides."""


class ODPOOptions(AnchoredOptions):
    """Beta, and the offset's size and scale."""

    alpha: float = Field(default=1.0, ge=0, description="Weight of the offset; 0 is DPO.")
    scale: Literal["log", "linear"] = Field(default="log", description="The offset is this of the score gap.")


@dataclass(frozen=True)
class ScoredPair(ExtendedPair):
    """A pair, and what a judge gave each completion."""

    chosen_score: float
    rejected_score: float


def read_scores(row: Mapping[str, Any]) -> tuple[tuple[float, float], list[str]]:
    """Read a judge's scores of both sides, or `margin`, their difference, and name the columns.

    Raises:
        RowError: one is missing or not a number, or the chosen one is not above the other.
    """
    if row.get(MARGIN) is not None:
        return read_margin(row), [MARGIN]
    names = [score_column(row, side) for side in SIDES]
    chosen, rejected = (number(row[name], name) for name in names)
    if chosen <= rejected:
        raise RowError(names[0], f"{chosen:g} is not above {names[1]} {rejected:g}; swap or remove the row")
    return (chosen, rejected), names


def read_margin(row: Mapping[str, Any]) -> tuple[float, float]:
    """Read `margin`, by how much the chosen completion is better, as scores that differ by it.

    Raises:
        RowError: it is not a number above 0, or stands beside scores.
    """
    margin = number(row[MARGIN], MARGIN)
    if margin <= 0:
        raise RowError(MARGIN, f"is {margin:g}; it must be above 0: swap or remove the row")
    beside = [
        name for side in SIDES for name in (pattern.format(side) for pattern in SCORE_COLUMNS) if name in row
    ]
    if beside:
        raise RowError(MARGIN, f"stands beside {beside[0]}; leave one out, such as with --columns {MARGIN}=")
    return margin, 0.0


def score_column(row: Mapping[str, Any], side: str) -> str:
    """Return the column that holds the score of one side.

    Raises:
        RowError: there is none.
    """
    for pattern in SCORE_COLUMNS:
        if pattern.format(side) in row:
            return pattern.format(side)
    raise RowError(
        f"{side}_score", "is missing; this loss needs a judge's score of each completion, or margin"
    )


FORMS = PAIR_FORMS.extended(read_scores, lambda pair, scores: ScoredPair(pair, *scores))
"""Every form of a pair with scores."""


@hookimpl
def loss_options() -> type[ODPOOptions]:
    """Return the options of ODPO."""
    return ODPOOptions


@hookimpl
def bundled_rows() -> Path:
    """Return eight scored pairs to try the loss on."""
    return Path(__file__).with_name("scored_pairs.jsonl")


@hookimpl
def row_forms() -> Forms:
    """Return every form of a scored pair."""
    return FORMS


@hookimpl
def flatten(example: ScoredPair, renderer: Renderer) -> Sequence[AttachedDatum]:
    """Flatten a pair into [chosen, rejected], each with its score attached."""
    datums = dpo.flatten(example.pair, renderer)
    scores = (example.chosen_score, example.rejected_score)
    return [attach(datum, score=value) for datum, value in zip(datums, scores, strict=True)]


def score_gaps(batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    """Return the chosen's score minus the rejected's, above 0, `[pairs]`."""
    chosen, rejected = chosen_and_rejected(batch.attached("score").to(dtype))
    return chosen - rejected


@hookimpl
def compute_loss(batch: Batch, logprobs: Logprobs, options: ODPOOptions) -> LossAndMetrics:
    """Compute -log sigma(reward margin - offset), the mean over pairs."""
    pairs = Pairs.of(batch, logprobs)
    gaps = score_gaps(batch, pairs.margins.dtype)
    offsets = options.alpha * (gaps.log() if options.scale == "log" else gaps)
    return batch.mean(bradley_terry(options.beta * pairs.margins - offsets)), pairs.metrics(
        pairs.rewards(options.beta)
    )
