"""REBEL, on the scored pairs of `odpo`.

In the formulas w is the chosen and l the rejected completion, h the log-ratio of policy and reference, and s
the row's score.
"""

from __future__ import annotations

from pydantic import Field

from mint_train.plugin import Batch, loss
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs
from mint_train_preferences.odpo import score_gaps
from mint_train_preferences.options import ReferenceOptions


class REBELOptions(ReferenceOptions):
    """REBEL's step size."""

    eta: float = Field(default=1.0, gt=0, description="Step size: log-ratios per unit of score (1/beta).")


@loss(extends="odpo", options=REBELOptions)
def rebel(batch: Batch, logprobs: Logprobs, options: REBELOptions) -> LossAndMetrics:
    """REBEL: regress the margin onto the difference of a judge's scores.

    Formula: ((h_w - h_l)/eta - (s_w - s_l))^2
    Paper: Gao et al., 2024, arXiv 2404.16767, algorithm 1; as reward distillation, Fisch et al., 2024,
        arXiv 2405.19316
    Defaults: eta is a choice made here: it depends on the scale of the scores
    Use: the scores mean more than their order: by how much matters
    """
    pairs = Pairs.of(batch, logprobs)
    losses = (pairs.margins / options.eta - score_gaps(batch, pairs.margins.dtype)).square()
    return batch.mean(losses), pairs.metrics(pairs.rewards(1 / options.eta))
