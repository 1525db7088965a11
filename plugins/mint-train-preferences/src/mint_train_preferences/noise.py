"""Losses for pairs whose labels may be wrong.

In the formulas w is the chosen and l the rejected completion, h the log-ratio of policy and reference,
z = beta (h_w - h_l), and e the label smoothing.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from mint_train.plugin import Batch, loss
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs
from mint_train_preferences.options import AnchoredOptions, LabelSmoothing
from mint_train_preferences.whole_batch import note_single_pair


class SmoothedOptions(AnchoredOptions):
    """Beta, and the probability of a wrong label."""

    label_smoothing: LabelSmoothing = 0.1


class EXOOptions(AnchoredOptions):
    """Beta, and what the target leaves to the rejected completion."""

    label_smoothing: float = Field(
        default=1e-3, gt=0, lt=0.5, description="Probability that the target leaves to the rejected."
    )


class ROPOOptions(AnchoredOptions):
    """Beta, and ROPO's alpha."""

    alpha: float = Field(default=14.0, gt=0, description="Weight of the bounded, noise-tolerant part.")


class DrDPOOptions(AnchoredOptions):
    """Beta, and Dr. DPO's second temperature."""

    beta_prime: float = Field(
        default=1.0, gt=0, description="Temperature over the batch; infinity gives DPO."
    )


@loss(extends="dpo", options=SmoothedOptions)
def cdpo(batch: Batch, logprobs: Logprobs, options: SmoothedOptions) -> LossAndMetrics:
    """Conservative DPO: label smoothing, so that margins settle at a finite value.

    Formula: -(1 - e) log sigma(z) - e log sigma(-z)
    Paper: Mitchell, 2023, "A note on DPO with noisy preferences and relationship to IPO", eq. 3
    Defaults: beta is DPO's; label_smoothing is a choice made here
    Use: a known share of labels is wrong; also a cure for margins that never stop growing
    """
    pairs = Pairs.of(batch, logprobs)
    losses = smoothed(options.beta * pairs.margins, options.label_smoothing)
    return batch.mean(losses), pairs.metrics(pairs.rewards(options.beta))


def smoothed(margins: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Compute the cross-entropy of the preference against a target of 1 - label_smoothing, per margin."""
    return -(1 - label_smoothing) * logsigmoid(margins) - label_smoothing * logsigmoid(-margins)


@loss(extends="dpo", options=SmoothedOptions)
def robust(batch: Batch, logprobs: Logprobs, options: SmoothedOptions) -> LossAndMetrics:
    """Robust DPO: unbiased under labels flipped at a known rate.

    Formula: (-(1 - e) log sigma(z) + e log sigma(-z)) / (1 - 2e)
    Paper: Chowdhury et al., 2024, arXiv 2403.00409, section 3.1
    Defaults: beta from table 4 of the paper, label_smoothing from its section 6, second hand (TRL)
    Use: labels are flipped at random at a rate that you know; the loss may be negative
    """
    pairs = Pairs.of(batch, logprobs)
    z, e = options.beta * pairs.margins, options.label_smoothing
    losses = (-(1 - e) * logsigmoid(z) + e * logsigmoid(-z)) / (1 - 2 * e)
    return batch.mean(losses), pairs.metrics(pairs.rewards(options.beta))


@loss(extends="dpo", options=EXOOptions)
def exo(batch: Batch, logprobs: Logprobs, options: EXOOptions) -> LossAndMetrics:
    """EXO: the reverse KL from the policy's preference to the smoothed labels.

    Formula: sigma(z) (log sigma(z) - log(1 - e)) + sigma(-z) (log sigma(-z) - log e)
    Paper: Ji et al., 2024, arXiv 2402.00856, eq. 16
    Defaults: beta from appendix B of the paper, label_smoothing from TRL's documentation, both second hand
    Use: mode-seeking where DPO is mass-covering
    """
    pairs = Pairs.of(batch, logprobs)
    z, e = options.beta * pairs.margins, options.label_smoothing
    chosen = torch.sigmoid(z) * (logsigmoid(z) - math.log1p(-e))
    rejected = torch.sigmoid(-z) * (logsigmoid(-z) - math.log(e))
    return batch.mean(chosen + rejected), pairs.metrics(pairs.rewards(options.beta))


@loss(extends="dpo", options=ROPOOptions)
def ropo(batch: Batch, logprobs: Logprobs, options: ROPOOptions) -> LossAndMetrics:
    """ROPO: DPO with a bounded part, so that surely wrong labels stop pulling.

    Formula: 4a/(1 + a)^2 (-log sigma(z)) + 4a^2/(1 + a)^2 sigma(-z), a = alpha
    Paper: Liang et al., 2024, arXiv 2404.04102, eq. 9
    Defaults: beta is DPO's; alpha second hand, from code that cites eq. 9
    Use: labels are noisy at a rate that you do not know
    """
    pairs = Pairs.of(batch, logprobs)
    z, alpha = options.beta * pairs.margins, options.alpha
    scale = 4 * alpha / (1 + alpha) ** 2
    losses = scale * (-logsigmoid(z) + alpha * torch.sigmoid(-z))
    return batch.mean(losses), pairs.metrics(pairs.rewards(options.beta))


@loss(extends="dpo", options=DrDPOOptions)
def dr_dpo(batch: Batch, logprobs: Logprobs, options: DrDPOOptions) -> LossAndMetrics:
    """Dr. DPO: DPO over the batch's most plausible pairs, by a soft minimum.

    Formula: -b' log mean exp(log sigma(z) / b'), the mean over the batch
    Paper: Wu et al., 2024, arXiv 2407.07880
    Defaults: beta_prime is that of the authors' code; beta is DPO's
    Use: some pairs are mislabelled; needs batches of more than a few pairs
    """
    pairs = Pairs.of(batch, logprobs)
    scaled = logsigmoid(options.beta * pairs.margins) / options.beta_prime
    weighted = scaled + batch.group_weights.to(scaled.dtype).log()
    log_mean = torch.logsumexp(weighted, dim=0) - math.log(batch.total_weight)
    return -options.beta_prime * log_mean, pairs.metrics(pairs.rewards(options.beta))


dr_dpo.answer("data_note", note_single_pair)
