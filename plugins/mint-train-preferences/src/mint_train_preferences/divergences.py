"""DPO under another divergence than the reverse KL between policy and reference.

In the formulas w is the chosen and l the rejected completion, and h the log-ratio of policy and reference.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from mint_train.plugin import Batch, loss
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs, bradley_terry
from mint_train_preferences.options import AnchoredOptions, Beta
from mint_train_preferences.stable_math import power_reward

EXPONENT_RANGE = (-88.0, 20.0)


class FDPOOptions(AnchoredOptions):
    """Beta, and the divergence."""

    divergence: Literal["reverse-kl", "forward-kl", "jensen-shannon", "alpha"] = Field(
        default="jensen-shannon", description="The divergence that holds the policy near the reference."
    )
    alpha: float = Field(
        default=0.5, gt=0, lt=1, description="Alpha of the alpha divergence: 0 reverse KL, 1 forward KL."
    )


class HDPOOptions(AnchoredOptions):
    """Beta, and what the policy's entropy counts."""

    alpha: float = Field(default=0.9, gt=0, description="Weight of the policy's entropy; 1 is DPO.")


class ChiPOOptions(AnchoredOptions):
    """Beta, and the bound of chi-PO's rewards."""

    beta: Beta = 0.05
    reward_max: float | None = Field(
        default=None, gt=0, description="Clip margins at twice this; none for no clipping."
    )


@loss(extends="dpo", options=FDPOOptions)
def f_dpo(batch: Batch, logprobs: Logprobs, options: FDPOOptions) -> LossAndMetrics:
    """f-DPO: DPO under the Jensen-Shannon, forward KL or an alpha divergence.

    Beyond e^30 exponentials go on as their tangents, so that they stay finite.

    Formula: -log sigma(beta (f'(h_w) - f'(h_l))); f'(h): reverse-kl h, forward-kl 1 - exp(-h),
        jensen-shannon log 2 + log sigma(h), alpha (1 - exp(-alpha h))/alpha
    Paper: Wang et al., 2023, arXiv 2309.16240; TRL's coefficient is 1 - alpha
    Defaults: beta is DPO's; divergence and alpha are choices made here
    Use: more diversity than DPO (forward KL), or a middle way (Jensen-Shannon)
    """
    pairs = Pairs.of(batch, logprobs)
    chosen, rejected = (divergence_reward(h, options) for h in pairs.log_ratios)
    rewards = options.beta * chosen, options.beta * rejected
    return batch.mean(bradley_terry(rewards[0] - rewards[1])), pairs.metrics(rewards)


def divergence_reward(log_ratios: torch.Tensor, options: FDPOOptions) -> torch.Tensor:
    """Compute f'(u) of u = exp(log_ratios), for the divergence that the options name."""
    if options.divergence == "jensen-shannon":
        return math.log(2) + logsigmoid(log_ratios)
    alpha = {"reverse-kl": 0.0, "forward-kl": 1.0, "alpha": options.alpha}[options.divergence]
    return power_reward(log_ratios, alpha)


@loss(extends="dpo", options=HDPOOptions)
def h_dpo(batch: Batch, logprobs: Logprobs, options: HDPOOptions) -> LossAndMetrics:
    """H-DPO: DPO whose regulariser leaves the policy a part of its entropy only.

    Formula: -log sigma(beta (alpha (p_w - p_l) - (p_ref_w - p_ref_l))), p a completion's logprob
    Paper: Omura et al., 2024, arXiv 2411.07595; formula second hand
    Defaults: beta is DPO's; alpha is a choice made here
    Use: a sharper policy (alpha below 1) or a more diverse one (above)
    """
    pairs = Pairs.of(batch, logprobs)
    reference = pairs.reference or (torch.zeros_like(pairs.chosen), torch.zeros_like(pairs.rejected))
    chosen = options.beta * (options.alpha * pairs.chosen - reference[0])
    rejected = options.beta * (options.alpha * pairs.rejected - reference[1])
    return batch.mean(bradley_terry(chosen - rejected)), pairs.metrics((chosen, rejected))


@loss(extends="dpo", options=ChiPOOptions)
def chi_po(batch: Batch, logprobs: Logprobs, options: ChiPOOptions) -> LossAndMetrics:
    """Chi-PO: DPO with chi-squared regularisation, which is pessimistic where data are few.

    Formula: -log sigma(clip(beta (phi(h_w) - phi(h_l)), 2 reward_max)), phi(h) = exp(h) + h; the exponent is
        kept between -88 and 20
    Paper: Huang et al., 2024, arXiv 2407.13399, algorithm 1
    Defaults: not confirmed at a source
    Use: offline data of thin coverage, long training: over-optimisation is the enemy
    """
    pairs = Pairs.of(batch, logprobs)
    chosen, rejected = (options.beta * (torch.exp(h.clamp(*EXPONENT_RANGE)) + h) for h in pairs.log_ratios)
    margins = chosen - rejected
    if options.reward_max is not None:
        margins = margins.clamp(-2 * options.reward_max, 2 * options.reward_max)
    return batch.mean(bradley_terry(margins)), pairs.metrics((chosen, rejected))
