"""Losses that regress log-ratios onto fixed targets, so that margins cannot grow without end.

In the formulas w is the chosen and l the rejected completion, and h the log-ratio of policy and reference.
"""

from __future__ import annotations

from pydantic import Field
from torch.nn.functional import logsigmoid

from mint_train.plugin import Batch, loss
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs
from mint_train_preferences.options import AnchoredOptions, Beta


class IPOOptions(AnchoredOptions):
    """Beta is tau in the IPO paper."""

    length_normalized: bool = Field(
        default=True, description="Compare log-ratios per token, as the authors' results do."
    )


class SelfPlayOptions(AnchoredOptions):
    """Beta is 1/eta in the SPPO paper: targets of 500 nats either way."""

    beta: Beta = 1e-3


@loss(extends="dpo", options=IPOOptions)
def ipo(batch: Batch, logprobs: Logprobs, options: IPOOptions) -> LossAndMetrics:
    """IPO: hold the margin at 1/(2 beta) instead of growing it for ever.

    The paper's formula has sums over tokens; its authors confirmed to TRL's that their results are with means
    over tokens, which is the default here too.

    Formula: (h_w/|y_w| - h_l/|y_l| - 1/(2 beta))^2; sums instead of means with `length_normalized=false`
    Paper: Azar et al., 2023, arXiv 2310.12036, eq. 17
    Defaults: beta is DPO's and TRL's
    Use: few or near-certain labels, on which DPO overfits
    """
    pairs = Pairs.of(batch, logprobs)
    chosen, rejected = pairs.mean_log_ratios if options.length_normalized else pairs.log_ratios
    losses = (chosen - rejected - 1 / (2 * options.beta)).square()
    return batch.mean(losses), pairs.metrics((options.beta * chosen, options.beta * rejected))


@loss(extends="dpo", options=SelfPlayOptions)
def sppo(batch: Batch, logprobs: Logprobs, options: SelfPlayOptions) -> LossAndMetrics:
    """SPPO: regress each log-ratio onto what its win (1) or loss (0) earns in self-play.

    The hard form, with win probabilities of 1 and 0 instead of a judge's.

    The authors' code takes half of this sum; TRL takes the sum. It matters where losses are added.

    Formula: (h_w - 1/(2 beta))^2 + (h_l + 1/(2 beta))^2
    Paper: Wu et al., 2024, arXiv 2405.00675, eq. 4.7
    Defaults: beta is that of the authors' code
    Use: rounds of pairs that the policy itself wrote
    """
    pairs = Pairs.of(batch, logprobs)
    chosen, rejected = pairs.log_ratios
    target = 1 / (2 * options.beta)
    losses = (chosen - target).square() + (rejected + target).square()
    return batch.mean(losses), pairs.metrics(pairs.rewards(options.beta))


@loss(extends="dpo", options=SelfPlayOptions)
def cal_dpo(batch: Batch, logprobs: Logprobs, options: SelfPlayOptions) -> LossAndMetrics:
    """Cal-DPO: DPO with each log-ratio calibrated to its reward, so that the chosen's likelihood rises.

    The authors' code counts the calibration half; here it counts whole.

    Formula: -log sigma(h_w - h_l) + (h_w - 1/(2 beta))^2 + (h_l + 1/(2 beta))^2
    Paper: Xiao et al., 2024, arXiv 2412.14516
    Defaults: beta is the authors' (run/beta001)
    Use: DPO lowers the likelihood of the chosen completions too
    """
    pairs = Pairs.of(batch, logprobs)
    chosen, rejected = pairs.log_ratios
    target = 1 / (2 * options.beta)
    calibration = (chosen - target).square() + (rejected + target).square()
    losses = -logsigmoid(pairs.margins) + calibration
    return batch.mean(losses), pairs.metrics(pairs.rewards(options.beta))
