"""TPO-L, on the triples of `tpo`.

In the formula w is the chosen and l the rejected completion, m the policy's logprob per token, and p_t the
logprob of a token of a gold completion.
"""

from __future__ import annotations

from pydantic import Field

from mint_train.plugin import Batch, loss
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, bradley_terry
from mint_train_preferences.tpo import TPOOptions, compared, gold_nll


class TPOLOptions(TPOOptions):
    """TPO's options, and a target margin."""

    gamma: float = Field(default=0.5, ge=0, description="Target margin between the two rewards.")


@loss(extends="tpo", options=TPOLOptions)
def tpo_l(batch: Batch, logprobs: Logprobs, options: TPOLOptions) -> LossAndMetrics:
    """TPO-L: TPO with logprobs per token as the reward, and a target margin.

    Formula: -log sigma(beta (m_w - m_l) - gamma) - alpha mean p_t, over all gold tokens of the batch
    Paper: Saeidi et al., 2024, arXiv 2405.16681
    Defaults: TRL's TPOConfig, second hand
    Use: as tpo, with completions of uneven length
    """
    pairs, nll = compared(batch, logprobs), gold_nll(batch, logprobs)
    chosen, rejected = (options.beta * m for m in pairs.mean_logprobs)
    value = batch.mean(bradley_terry(chosen - rejected - options.gamma)) + options.alpha * nll
    return value, pairs.metrics((chosen, rejected)) | {"nll": float(nll.detach())}
