"""Direct Preference Optimization: the Bradley-Terry loss on pairs (Rafailov et al., 2023).

In the formula w is the chosen and l the rejected completion, p the policy's logprob of it, h its log-ratio of
policy and reference.

Formula: -log sigma(beta (h_w - h_l)); with `reference=none`, MinT's recipe, -log sigma(beta (p_w - p_l))
Paper: Rafailov et al., 2023, arXiv 2305.18290, eq. 7, where beta is 0.1 and there is a reference
Defaults: no reference and beta 1 are MinT's recipe's; the paper has a reference and beta 0.1 (appendix B)
Use: the first loss to try, with `reference=initial` and `beta=0.1`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from mint_train.plugin import (
    NO_REFERENCE,
    Batch,
    Datum,
    Forms,
    Metric,
    OptionalReference,
    Options,
    Renderer,
    hookimpl,
    require_distinct,
    require_group_size,
    require_same_prompt,
    require_trained,
)
from mint_train_dpo.pairs import METRICS, Logprobs, LossAndMetrics, Pairs, bradley_terry, chosen_and_rejected
from mint_train_dpo.rows import FORMS, PreferencePair

SIDES = ("chosen", "rejected")
MUCH_LONGER = 1.5


class DPOOptions(Options):
    """The options of DPO; the defaults are those of MinT's recipe, which has no reference model."""

    beta: float = Field(default=1.0, gt=0, description="Inverse temperature on the margins.")
    reference: OptionalReference = NO_REFERENCE


@hookimpl
def loss_options() -> type[DPOOptions]:
    """Return the options of DPO."""
    return DPOOptions


@hookimpl
def bundled_rows() -> Path:
    """Return 80 pairs to try the loss on: answers in metric units, preferred to imperial ones."""
    return Path(__file__).with_name("pairs.jsonl")


@hookimpl
def row_forms() -> Forms:
    """Return every form of a pair."""
    return FORMS


@hookimpl
def datum_names() -> tuple[str, str]:
    """Name the two datums of a pair."""
    return SIDES


@hookimpl
def flatten(example: PreferencePair, renderer: Renderer) -> Sequence[Datum]:
    """Flatten a pair into [chosen, rejected]."""
    return renderer.datums(example.prompt, (example.chosen, example.rejected), SIDES)


@hookimpl
def check_batch(batch: Batch) -> None:
    """Require pairs of two different trained completions of one prompt: even datums are the chosen ones."""
    require_group_size(batch, 2, "pair", SIDES)
    require_trained(batch, "pair", ("chosen completion", "rejected completion"))
    require_same_prompt(batch, "pair", SIDES)
    require_distinct(batch, "pair", SIDES)


@hookimpl
def compute_loss(batch: Batch, logprobs: Logprobs, options: DPOOptions) -> LossAndMetrics:
    """Compute -log sigma(beta (score of chosen - score of rejected)), the mean over pairs.

    A score is the log-ratio of policy and reference (Rafailov et al., 2023, arXiv 2305.18290, eq. 7; their
    beta is 0.1), or without a reference, as in MinT's recipe, the policy's sequence logprob.
    """
    has_reference = options.reference != NO_REFERENCE
    pairs = Pairs.of(batch, logprobs, reference=has_reference)
    rewards = pairs.rewards(options.beta) if has_reference else None
    return batch.mean(bradley_terry(options.beta * pairs.margins)), pairs.metrics(rewards)


@hookimpl
def metrics() -> dict[str, Metric]:
    """Describe the metrics of pairs."""
    return METRICS


@hookimpl
def options_note(options: DPOOptions) -> str | None:
    """Say that the default is not the paper's form, and how to get that."""
    if "reference" in options.model_fields_set:
        return None
    return "MinT's form: no reference. The paper's: --set reference=initial --set beta=0.1"


@hookimpl
def data_note(batch: Batch, options: DPOOptions) -> str | None:
    """Explain why accuracy may start at 0.00 on summed logprobs."""
    if options.reference != NO_REFERENCE:
        return None
    chosen, rejected = (float(tokens.double().mean()) for tokens in chosen_and_rejected(batch.trained_tokens))
    if chosen < MUCH_LONGER * rejected:
        return None
    return (
        f"Chosen completions average {chosen:.0f} tokens, rejected ones {rejected:.0f}: a sum of logprobs "
        "falls with each token, so chosen completions start far behind; pair_accuracy of 0.00 is expected "
        "at first."
    )
