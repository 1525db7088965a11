"""Offline policy gradient: sampled completions with old logprobs and advantages, clipped where asked.

In the formula A is a token's advantage and r its ratio: its probability under the policy, divided by that
under the policy that sampled it.

Formula: -r A per token; with `clip`, -min(r A, clip(r, 1 - clip, 1 + clip_high) A)
Paper: Schulman et al., 2017, arXiv 1707.06347, eq. 6 and 7
Defaults: choices made here: nothing is clipped
Use: completions that you sampled and scored yourself, with their logprobs
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field, model_validator

from mint_train.plugin import NO_REFERENCE, Batch, Metric, OptionalReference, hookimpl
from mint_train_policy_gradient.options import HowAveraged, RatioOptions
from mint_train_policy_gradient.reinforce import with_kl
from mint_train_policy_gradient.samples import METRICS, LossAndMetrics, Samples, clipped_gains

EXTENDS = "reinforce"


class PolicyGradientOptions(RatioOptions):
    """The options of the offline policy gradient; the defaults clip nothing."""

    clip: float | None = Field(
        default=None, gt=0, lt=1, description="How far a ratio moves before its gradient stops; PPO's is 0.2."
    )
    clip_high: float | None = Field(default=None, gt=0, description="The same above 1, where it differs.")
    average: HowAveraged = "tokens"
    reference: OptionalReference = NO_REFERENCE

    @model_validator(mode="after")
    def clip_high_needs_clip(self) -> PolicyGradientOptions:
        """Refuse an upper bound without a lower one."""
        if self.clip_high is not None and self.clip is None:
            raise ValueError("clip_high is set without clip; set both")
        return self


@hookimpl
def loss_options() -> type[PolicyGradientOptions]:
    """Return the options of the policy gradient."""
    return PolicyGradientOptions


@hookimpl
def bundled_rows() -> Path:
    """Return eight rollouts to try the loss on; their token ids are small, so that any tokenizer has them."""
    return Path(__file__).with_name("rollouts.jsonl")


@hookimpl
def compute_loss(
    batch: Batch, logprobs: Sequence[torch.Tensor], options: PolicyGradientOptions
) -> LossAndMetrics:
    """Compute -r A per token, clipped and averaged as the options ask (Schulman et al., 2017)."""
    samples = Samples.of(batch, logprobs, options.advantage)
    gains = clipped_gains(samples.ratios, samples.advantages, options.clip, options.clip_high)
    value = with_kl(-samples.token_mean(gains, options.average), samples, options, options.average)
    return value, samples.metrics(gains < samples.ratios * samples.advantages)


@hookimpl
def metrics() -> dict[str, Metric]:
    """Describe how far the policy has moved from the one that sampled."""
    return METRICS
