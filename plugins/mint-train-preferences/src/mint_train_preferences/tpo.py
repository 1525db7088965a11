"""TPO: a preference between two completions, and imitation of a third, the gold one.

A row has `gold` beside its pair: what the model should have written. It is imitated, and not compared.

In the formulas w is the chosen, l the rejected and g the gold completion, p the policy's logprob, p_t that of
a token, and m the logprob per token.

Formula: -log sigma(beta (p_w - p_l)) - alpha mean p_t, over all gold tokens of the batch
Paper: Saeidi et al., 2024, arXiv 2405.16681
Defaults: the authors' run_tpo.sh
Use: you have a reference answer beside two graded ones
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from mint_train.plugin import (
    Batch,
    Completion,
    Datum,
    Forms,
    Metric,
    Options,
    Renderer,
    RowError,
    hookimpl,
    mean_logprobs,
    require_distinct,
    require_group_size,
    require_same_prompt,
    require_trained,
    sequence_logprobs,
)
from mint_train_dpo.pairs import METRICS, Logprobs, LossAndMetrics, Pairs, bradley_terry
from mint_train_dpo.rows import FORMS as PAIR_FORMS
from mint_train_dpo.rows import PreferencePair
from mint_train_preferences.fields import ExtendedPair, read_third
from mint_train_preferences.options import Beta

GOLD = "gold"
SIDES = ("chosen", "rejected", GOLD)
NLL = Metric(".6f", "nats per token", better="lower")


class TPOOptions(Options):
    """Beta, and the weight of the gold completions' NLL."""

    beta: Beta = 0.01
    alpha: float = Field(default=1.0, ge=0, description="Weight of the gold completions' NLL per token.")


@dataclass(frozen=True)
class Triple(ExtendedPair):
    """A pair, and the completion to imitate."""

    gold: Completion


def read_gold(row: Mapping[str, Any]) -> tuple[Completion, list[str]]:
    """Read `gold`, and name the column.

    Raises:
        RowError: it is missing, wrong or a whole conversation.
    """
    return read_third(row, GOLD, "this loss imitates a third completion")


def make_triple(pair: PreferencePair, gold: Completion) -> Triple:
    """Put a pair and its gold completion together.

    Raises:
        RowError: the gold completion is one of the pair.
    """
    if gold == pair.rejected:
        raise RowError(GOLD, "is equal to rejected: it would be raised and lowered at once")
    if gold == pair.chosen:
        raise RowError(GOLD, "is equal to chosen; for that there is the loss cpo")
    return Triple(pair, gold)


FORMS = PAIR_FORMS.extended(read_gold, make_triple)
"""Every form of a pair with `gold`."""


@hookimpl
def loss_options() -> type[TPOOptions]:
    """Return the options of TPO."""
    return TPOOptions


@hookimpl
def bundled_rows() -> Path:
    """Return eight triples to try the loss on."""
    return Path(__file__).with_name("gold_pairs.jsonl")


@hookimpl
def row_forms() -> Forms:
    """Return every form of a pair with `gold`."""
    return FORMS


@hookimpl
def datum_names() -> tuple[str, ...]:
    """Name the three datums of a group."""
    return SIDES


@hookimpl
def flatten(example: Triple, renderer: Renderer) -> Sequence[Datum]:
    """Flatten a triple into [chosen, rejected, gold]."""
    pair = example.pair
    return renderer.datums(pair.prompt, (pair.chosen, pair.rejected, example.gold), SIDES)


@hookimpl
def check_batch(batch: Batch) -> None:
    """Require three different trained completions of one prompt."""
    require_group_size(batch, 3, "triple", SIDES)
    require_trained(batch, "triple", [f"{side} completion" for side in SIDES])
    require_same_prompt(batch, "triple", SIDES)
    require_distinct(batch, "triple", SIDES)


def compared(batch: Batch, logprobs: Logprobs) -> Pairs:
    """Return the pairs of a batch of triples."""
    sums = sequence_logprobs(logprobs, batch)
    tokens = batch.trained_tokens.to(sums.dtype)
    return Pairs(sums[::3], sums[1::3], tokens[::3], tokens[1::3], None)


def gold_nll(batch: Batch, logprobs: Logprobs) -> torch.Tensor:
    """Compute the NLL per token over all gold completions, a scalar, nats."""
    tokens = batch.trained_tokens[2::3]
    return -batch.mean(mean_logprobs(logprobs, batch)[2::3] * tokens, tokens)


@hookimpl
def compute_loss(batch: Batch, logprobs: Logprobs, options: TPOOptions) -> LossAndMetrics:
    """Compute -log sigma(beta margin), the mean over pairs, plus alpha times the gold completions' NLL."""
    pairs, nll = compared(batch, logprobs), gold_nll(batch, logprobs)
    value = batch.mean(bradley_terry(options.beta * pairs.margins)) + options.alpha * nll
    return value, pairs.metrics(pairs.rewards(options.beta)) | {"nll": float(nll.detach())}


@hookimpl
def metrics() -> dict[str, Metric]:
    """Describe the metrics of pairs, and the gold completions' NLL."""
    return {name: metric for name, metric in METRICS.items() if name != "drift"} | {"nll": NLL}
