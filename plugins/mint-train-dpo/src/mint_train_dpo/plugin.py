"""Direct Preference Optimization: the Bradley-Terry loss on pairs (Rafailov et al., 2023).

In the formula w is the chosen and l the rejected completion, p the policy's logprob of it, h its log-ratio of
policy and reference.

Formula: -log sigma(beta (h_w - h_l)); with `reference=none`, MinT's recipe, -log sigma(beta (p_w - p_l))
Paper: Rafailov et al., 2023, arXiv 2305.18290, eq. 7, where beta is 0.1 and there is a reference
Use: the first loss to try, with `reference=initial` and `beta=0.1`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from mint_train import Batch, hookimpl
from mint_train.rendering.renderer import Renderer
from mint_train.rows.forms import recognise
from mint_train.sdk import Datum
from mint_train_dpo.contract import check_pairs
from mint_train_dpo.loss import (
    NO_REFERENCE,
    LossAndMetrics,
    Pairs,
    bradley_terry,
    chosen_and_rejected,
    wants_reference,
)
from mint_train_dpo.pairs import FORMS, PreferencePair, parse_pair

MUCH_LONGER = 1.5


class DPOOptions(BaseModel):
    """The options of DPO; the defaults are those of MinT's recipe, which has no reference model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    beta: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="Inverse temperature on the margins."
    )
    reference: str = Field(
        default=NO_REFERENCE,
        min_length=1,
        description='"none", "initial" (the policy before its first step), or a model or checkpoint.',
    )


@hookimpl
def loss_options() -> type[BaseModel]:
    """Options of the loss."""
    return DPOOptions


@hookimpl
def bundled_rows() -> Path:
    """Eight pairs to try the loss on."""
    return Path(__file__).with_name("pairs.jsonl")


@hookimpl
def parse_row(row: Mapping[str, Any]) -> PreferencePair:
    """A pair in any of the forms of `pairs.py`."""
    return parse_pair(row)


@hookimpl
def row_form(row: Mapping[str, Any]) -> str:
    """Name the form of a pair."""
    return recognise(row, FORMS).name


@hookimpl
def flatten(example: PreferencePair, renderer: Renderer) -> Sequence[Datum]:
    """Flatten a pair into [chosen, rejected]."""
    return renderer.datums(example.prompt, (example.chosen, example.rejected), ("chosen", "rejected"))


@hookimpl
def check_batch(batch: Batch) -> None:
    """Enforce even = chosen, odd = rejected."""
    check_pairs(batch)


@hookimpl
def compute_loss(batch: Batch, logprobs: Sequence[torch.Tensor], options: DPOOptions) -> LossAndMetrics:
    """-log sigma(beta (score of chosen - score of rejected)), the mean over pairs.

    A score is the log-ratio of policy and reference (Rafailov et al., 2023, arXiv 2305.18290, eq. 7; their
    beta is 0.1), or without a reference, as in MinT's recipe, the policy's sequence logprob.
    """
    reference = wants_reference(options)
    pairs = Pairs.of(batch, logprobs, reference=reference)
    return bradley_terry(options.beta * pairs.margins), pairs.metrics(
        pairs.rewards(options.beta) if reference else None
    )


@hookimpl
def reference(options: BaseModel) -> str | None:
    """Name the reference that the options ask for; a loss that extends this one without that option: none."""
    return str(getattr(options, "reference", None)) if wants_reference(options) else None


@hookimpl
def step_line() -> dict[str, str]:
    """Accuracy and margin, as MinT's recipe prints them, and those of the rewards where there are rewards."""
    return {
        "pair_accuracy": ".2f",
        "mean_margin": ".6f",
        "rewards/accuracy": ".2f",
        "rewards/margin": ".6f",
    }


@hookimpl
def datum_names() -> tuple[str, str]:
    """Name the two datums of a pair."""
    return ("chosen", "rejected")


@hookimpl
def remark(batch: Batch) -> str | None:
    """Say why accuracy may start at 0.00 on summed logprobs."""
    if batch.reference_logprobs is not None:
        return None
    chosen, rejected = (float(tokens.double().mean()) for tokens in chosen_and_rejected(batch.trained_tokens))
    if chosen < MUCH_LONGER * rejected:
        return None
    return (
        f"Chosen completions average {chosen:.0f} tokens, rejected ones {rejected:.0f}: a sum of logprobs "
        "falls with each token, so the chosen start far behind and pair_accuracy 0.00 is true at first."
    )
