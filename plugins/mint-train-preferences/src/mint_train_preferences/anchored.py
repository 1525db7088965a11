"""Losses that judge each completion against the reference, not only the two against each other.

In the formulas w is the chosen and l the rejected completion, and r = beta h the reward, h the log-ratio of
policy and reference.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from mint_train.plugin import Batch, Metric, loss
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs
from mint_train_preferences.options import AnchoredOptions, Beta
from mint_train_preferences.running_mean import running_mean


class NCAOptions(AnchoredOptions):
    """Beta is alpha in the NCA paper."""

    beta: Beta = 0.01


class BCOOptions(AnchoredOptions):
    """The BCO paper's beta, and its reward shift."""

    beta: Beta = 0.01
    shift: bool = Field(default=True, description="Shift rewards by their running mean, delta.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="How much of the old delta a step keeps.")


@loss(extends="dpo", options=AnchoredOptions)
def apo_zero(batch: Batch, logprobs: Logprobs, options: AnchoredOptions) -> LossAndMetrics:
    """APO-zero: raise the chosen above the reference, lower the rejected below it.

    Formula: 1 - sigma(r_w) + sigma(r_l)
    Paper: D'Oosterlinck et al., 2024, arXiv 2408.06266, eq. 7
    Defaults: section 5.2 of the paper, second hand (TRL)
    Use: the chosen completions are better than what the model writes now
    """
    pairs = Pairs.of(batch, logprobs)
    chosen, rejected = rewards = pairs.rewards(options.beta)
    losses = torch.sigmoid(-chosen) + torch.sigmoid(rejected)
    return batch.mean(losses), pairs.metrics(rewards)


@loss(extends="dpo", options=AnchoredOptions)
def apo_down(batch: Batch, logprobs: Logprobs, options: AnchoredOptions) -> LossAndMetrics:
    """APO-down: lower both below the reference, the rejected more.

    Formula: sigma(r_w) + 1 - sigma(r_w - r_l)
    Paper: D'Oosterlinck et al., 2024, arXiv 2408.06266, eq. 8
    Defaults: section 5.2 of the paper, second hand (TRL)
    Use: the model already writes better than the chosen completions
    """
    pairs = Pairs.of(batch, logprobs)
    chosen, rejected = rewards = pairs.rewards(options.beta)
    losses = torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)
    return batch.mean(losses), pairs.metrics(rewards)


@loss(extends="dpo", options=NCAOptions)
def nca(batch: Batch, logprobs: Logprobs, options: NCAOptions) -> LossAndMetrics:
    """NCA: noise contrast, which keeps the chosen completions likely in absolute terms.

    Formula: -log sigma(r_w) - (log sigma(-r_w) + log sigma(-r_l)) / 2
    Paper: Chen et al., 2024, arXiv 2402.05369, section 4.1, for pairs
    Defaults: the authors' preference_qlora.yaml; appendix C of the paper has the same for UltraFeedback,
        second hand (TRL)
    Use: reasoning and mathematics, where DPO makes right answers unlikely
    """
    pairs = Pairs.of(batch, logprobs)
    chosen, rejected = rewards = pairs.rewards(options.beta)
    losses = -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)
    return batch.mean(losses), pairs.metrics(rewards)


@loss(extends="dpo", options=BCOOptions, metrics={"delta": Metric(".6f", "nats", kind="batch")})
def bco(
    batch: Batch, logprobs: Logprobs, options: BCOOptions, state: MutableMapping[str, float]
) -> LossAndMetrics:
    """BCO: a binary classifier whose logit is the reward above its running mean.

    Formula: -log sigma(r_w - d) - log sigma(-(r_l - d)), d the running mean of (r_w + r_l)/2, no gradient
    Paper: Jung et al., 2024, arXiv 2404.04656, section 4; d = 0 with `shift=false`
    Defaults: beta from appendix C of the paper, second hand (TRL); momentum is a choice made here
    Use: labels are thumbs up and down more than comparisons
    """
    pairs = Pairs.of(batch, logprobs)
    chosen, rejected = rewards = pairs.rewards(options.beta)
    delta = 0.0
    if options.shift:
        delta = running_mean(state, "delta", batch.mean(chosen + rejected) / 2, options.momentum)
    losses = -logsigmoid(chosen - delta) - logsigmoid(delta - rejected)
    return batch.mean(losses), pairs.metrics(rewards) | {"delta": delta}


@loss(extends="dpo", options=AnchoredOptions, traits={"UNTRAINED_DATUMS": (0,)})
def npo(batch: Batch, logprobs: Logprobs, options: AnchoredOptions) -> LossAndMetrics:
    """NPO: unlearn the rejected completions; the chosen ones play no part.

    Formula: -(2/beta) log sigma(-r_l)
    Paper: Zhang et al., 2024, arXiv 2404.05868
    Defaults: beta is that of the authors' code
    Use: making a model forget; add `sft` to keep what it should know
    """
    pairs = Pairs.of(batch, logprobs)
    rewards = pairs.rewards(options.beta)
    losses = -2 / options.beta * logsigmoid(-rewards[1])
    return batch.mean(losses), pairs.metrics(rewards)
