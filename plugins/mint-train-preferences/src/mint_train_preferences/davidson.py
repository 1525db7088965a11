"""DPO-D, on the rows of `dpo-rk`: pairs, and ties.

In the formula w is the chosen and l the rejected completion, d = beta (h_w - h_l), and h the log-ratio of
policy and reference.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field

from mint_train.plugin import Batch, loss
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs
from mint_train_preferences.options import AnchoredOptions
from mint_train_preferences.ties import are_ties, tie_metrics


class DavidsonOptions(AnchoredOptions):
    """Beta, and how likely ties are."""

    nu: float = Field(default=1.0, gt=0, description="How likely ties are; near 0, hardly.")


@loss(extends="dpo-rk", options=DavidsonOptions)
def dpo_davidson(batch: Batch, logprobs: Logprobs, options: DavidsonOptions) -> LossAndMetrics:
    """DPO-D: DPO that learns from ties too, by Davidson's model of comparisons.

    Formula: log Z for a pair, log Z - log(2 nu) + d/2 for a tie, Z = 1 + exp(-d) + 2 nu exp(-d/2)
    Paper: Chen et al., 2024, arXiv 2409.17431; Davidson, 1970
    Defaults: nu 1 makes a tie of equal completions as likely as not, the paper's choice, second hand; beta is
        DPO's
    Use: as dpo-rk; the odds of winning do not depend on how likely ties are
    """
    pairs, ties = Pairs.of(batch, logprobs), are_ties(batch)
    margins = options.beta * pairs.margins
    tied = math.log(2 * options.nu) - margins / 2
    total = torch.stack([torch.zeros_like(margins), -margins, tied]).logsumexp(dim=0)
    losses = torch.where(ties, total - tied, total)
    return batch.mean(losses), tie_metrics(pairs, ties, options.beta)
