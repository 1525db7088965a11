"""XPO: DPO that explores, by lowering what the reference would have written anyway.

A row has `reference_completion` beside its pair: a completion that the reference wrote for the prompt. It may
be one of the two, as where the policy's completion was compared with the reference's.

In the formula w is the chosen and l the rejected completion, h the log-ratio of policy and reference, and p_q
the policy's logprob of the reference's completion.

Formula: -log sigma(beta (h_w - h_l)) + alpha p_q
Paper: Xie et al., 2024, arXiv 2405.21046, algorithm 1; as in TRL's XPOTrainer, second hand
Defaults: TRL's XPOConfig, second hand
Use: rounds of pairs that the policy itself wrote, where answers beyond the reference's are to be found
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from mint_train.plugin import (
    Batch,
    Completion,
    Datum,
    Forms,
    Metric,
    Renderer,
    hookimpl,
    reference_sequence_logprobs,
    require_group_size,
    require_same_prompt,
    require_trained,
    sequence_logprobs,
)
from mint_train_dpo.pairs import METRICS, Logprobs, LossAndMetrics, Pairs, bradley_terry
from mint_train_dpo.rows import FORMS as PAIR_FORMS
from mint_train_preferences.fields import ExtendedPair, read_third
from mint_train_preferences.options import AnchoredOptions

OF_REFERENCE = "reference_completion"
SIDES = ("chosen", "rejected", OF_REFERENCE)
DATUMS_MAY_REPEAT = True
"""The reference may have written one of the pair."""


class XPOOptions(AnchoredOptions):
    """DPO's beta, and how strongly the reference's completions are lowered."""

    alpha: float = Field(default=1e-5, ge=0, description="Weight of the reference's completion; 0 is DPO.")


@dataclass(frozen=True)
class Explored(ExtendedPair):
    """A pair, and a completion of the reference."""

    of_reference: Completion


def read_of_reference(row: Mapping[str, Any]) -> tuple[Completion, list[str]]:
    """Read `reference_completion`, and name the column.

    Raises:
        RowError: it is missing, wrong or a whole conversation.
    """
    return read_third(row, OF_REFERENCE, "this loss lowers what the reference wrote")


FORMS = PAIR_FORMS.extended(read_of_reference, Explored)
"""Every form of a pair with `reference_completion`."""


@hookimpl
def loss_options() -> type[XPOOptions]:
    """Return the options of XPO."""
    return XPOOptions


@hookimpl
def bundled_rows() -> Path:
    """Return eight pairs with a completion of the reference to try the loss on."""
    return Path(__file__).with_name("explored_pairs.jsonl")


@hookimpl
def row_forms() -> Forms:
    """Return every form of a pair with `reference_completion`."""
    return FORMS


@hookimpl
def datum_names() -> tuple[str, ...]:
    """Name the three datums of a group."""
    return SIDES


@hookimpl
def flatten(example: Explored, renderer: Renderer) -> Sequence[Datum]:
    """Flatten a pair and the reference's completion into three datums."""
    pair = example.pair
    return renderer.datums(pair.prompt, (pair.chosen, pair.rejected, example.of_reference), SIDES)


@hookimpl
def check_batch(batch: Batch) -> None:
    """Require three trained completions of one prompt."""
    require_group_size(batch, 3, "triple", SIDES)
    require_trained(batch, "triple", ("chosen", "rejected", "reference's"))
    require_same_prompt(batch, "triple", SIDES)


@hookimpl
def compute_loss(batch: Batch, logprobs: Logprobs, options: XPOOptions) -> LossAndMetrics:
    """Compute DPO's loss plus alpha times the logprob of the reference's completion, the mean over pairs."""
    sums, reference = sequence_logprobs(logprobs, batch), reference_sequence_logprobs(batch)
    tokens = batch.trained_tokens.to(sums.dtype)
    pairs = Pairs(sums[::3], sums[1::3], tokens[::3], tokens[1::3], (reference[::3], reference[1::3]))
    explored = sums[2::3]
    losses = bradley_terry(options.beta * pairs.margins) + options.alpha * explored
    named = pairs.metrics(pairs.rewards(options.beta)) | {OF_REFERENCE: float(explored.detach().mean())}
    return batch.mean(losses), named


@hookimpl
def metrics() -> dict[str, Metric]:
    """Describe the metrics of pairs, and the policy's logprob of the reference's completions."""
    return METRICS | {OF_REFERENCE: Metric(".6f", "nats")}
