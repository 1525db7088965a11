"""Losses that are one function of the margin beta (h_w - h_l), h the log-ratio of policy and reference.

In the formulas w is the chosen and l the rejected completion, and z = beta (h_w - h_l).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from mint_train.plugin import NO_REFERENCE, Batch, OptionalReference, Options, loss
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs
from mint_train_preferences.options import AnchoredOptions, Beta


class HingeOptions(Options):
    """Beta and an optional reference: SLiC-HF has none, its successors have one."""

    beta: Beta = 0.1
    reference: OptionalReference = "initial"


@loss(extends="dpo", options=HingeOptions)
def hinge(batch: Batch, logprobs: Logprobs, options: HingeOptions) -> LossAndMetrics:
    """Hinge (SLiC): push a pair until its margin is 1, then leave it alone.

    Formula: max(0, 1 - z)
    Paper: SLiC-HF, Zhao et al., 2023, arXiv 2305.10425, section 2 (with `reference=none`, margin 1/beta);
        against a reference as in RSO, Liu et al., 2023, arXiv 2309.06657
    Defaults: beta is DPO's and TRL's
    Use: pairs already won should stop pulling on the model
    """
    pairs = Pairs.of(batch, logprobs, reference=options.reference != NO_REFERENCE)
    losses = torch.relu(1 - options.beta * pairs.margins)
    return batch.mean(losses), pairs.metrics(pairs.rewards(options.beta))


class DiscoPOPOptions(AnchoredOptions):
    """Beta and tau of the DiscoPOP paper."""

    beta: Beta = 0.05
    tau: float = Field(default=0.05, gt=0, le=1, description="Temperature of the blend.")


@loss(extends="dpo", options=DiscoPOPOptions)
def discopop(batch: Batch, logprobs: Logprobs, options: DiscoPOPOptions) -> LossAndMetrics:
    """DiscoPOP: a blend of logistic and exponential loss that a language model discovered.

    It is not convex: with the paper's beta and tau it pulls the wrong way while the log-ratio margin is
    between -2.37 and 1.44, so a run that starts at the reference needs noise, a warm start, or tau over 0.11.

    Formula: (1 - sigma(z/tau)) (-log sigma(z)) + sigma(z/tau) exp(-z)
    Paper: Lu et al., 2024, arXiv 2406.08414, eq. 5
    Defaults: the authors' code; beta in appendix B.1, tau in appendix E of the paper
    Use: an alternative to DPO that was found by search, on a policy that already prefers the chosen
    """
    pairs = Pairs.of(batch, logprobs)
    z = options.beta * pairs.margins
    # sigma(z/tau) exp(-z) as one exponential: apart, the second factor overflows
    exponential = torch.exp(logsigmoid(z / options.tau) - z)
    losses = torch.sigmoid(-z / options.tau) * -logsigmoid(z) + exponential
    return batch.mean(losses), pairs.metrics(pairs.rewards(options.beta))


class FocalPOOptions(AnchoredOptions):
    """Beta, and FocalPO's gamma."""

    gamma: float = Field(default=0.05, ge=0, description="How much a wrongly ranked pair is played down.")


@loss(extends="dpo", options=FocalPOOptions)
def focalpo(batch: Batch, logprobs: Logprobs, options: FocalPOOptions) -> LossAndMetrics:
    """FocalPO: DPO with less weight on pairs that the model ranks wrongly.

    Formula: -sigma(z)^gamma log sigma(z)
    Paper: Liu et al., 2025, arXiv 2501.06645
    Defaults: beta is DPO's; gamma is not confirmed at a source (the authors' repository has no code)
    Use: many pairs are hopeless or mislabelled, and fitting them costs the others
    """
    pairs = Pairs.of(batch, logprobs)
    log_probability = logsigmoid(options.beta * pairs.margins)
    losses = -torch.exp(options.gamma * log_probability) * log_probability
    return batch.mean(losses), pairs.metrics(pairs.rewards(options.beta))


CONVEX: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "logistic": lambda z: -logsigmoid(z),
    "hinge": lambda z: torch.relu(1 - z),
    "squared": lambda z: (1 - z).square(),
    "truncated-squared": lambda z: torch.relu(1 - z).square(),
    "savage": lambda z: torch.sigmoid(-z).square(),
}


class GPOOptions(AnchoredOptions):
    """Beta, and the function of the margin."""

    function: Literal["logistic", "hinge", "squared", "truncated-squared", "savage"] = Field(
        default="truncated-squared", description="The loss of a margin z."
    )


@loss(extends="dpo", options=GPOOptions)
def gpo(batch: Batch, logprobs: Logprobs, options: GPOOptions) -> LossAndMetrics:
    """GPO: any convex loss of the margin, by name.

    The paper's exponential loss is left out: in float32 it overflows at a margin of -89.

    Formula: f(z); logistic -log sigma(z), hinge max(0, 1 - z), squared (1 - z)^2,
        truncated-squared max(0, 1 - z)^2, savage sigma(-z)^2
    Paper: Tang et al., 2024, arXiv 2402.05749, table 1
    Defaults: beta is DPO's; the function is a choice made here
    Use: comparing shapes: bounded (savage) for noisy labels, squared to hold margins at 1/beta
    """
    pairs = Pairs.of(batch, logprobs)
    losses = CONVEX[options.function](options.beta * pairs.margins)
    return batch.mean(losses), pairs.metrics(pairs.rewards(options.beta))
