"""DPO that does not let the likelihood of the chosen completions fall along with the rejected ones'.

In the formulas w is the chosen and l the rejected completion, h the log-ratio of policy and reference,
and m the policy's logprob per token.
"""

from __future__ import annotations

import torch
from pydantic import Field

from mint_train.plugin import Batch, loss
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs, bradley_terry
from mint_train_preferences.options import AnchoredOptions, Beta
from mint_train_preferences.supervised import NLL, sequence_nll


class DPOPOptions(AnchoredOptions):
    """Beta, and the penalty."""

    beta: Beta = 0.3
    penalty: float = Field(
        default=50.0, ge=0, description="Lambda: weight of a chosen one's lost likelihood."
    )


class ShiftOptions(AnchoredOptions):
    """Beta, and what the rejected reward counts."""

    beta: Beta = 0.01
    shift: float = Field(default=0.7, gt=0, le=1, description="Lambda: weight of the rejected; 1 is DPO.")


class RPOOptions(AnchoredOptions):
    """Beta, and the weight of the NLL."""

    alpha: float = Field(default=1.0, ge=0, description="Weight of the chosen's NLL per token.")


@loss(extends="dpo", options=DPOPOptions)
def dpo_positive(batch: Batch, logprobs: Logprobs, options: DPOPOptions) -> LossAndMetrics:
    """DPO-Positive (DPOP): a penalty where the chosen becomes less likely than under the reference.

    Formula: -log sigma(beta (h_w - h_l - penalty max(0, -h_w)))
    Paper: Smaug, Pal et al., 2024, arXiv 2402.13228
    Defaults: section 5 of the paper, second hand; the authors' repository has no code
    Use: pairs that differ in a few tokens (mathematics, code), where DPO lowers both
    """
    pairs = Pairs.of(batch, logprobs)
    lost = torch.relu(-pairs.log_ratios[0])
    z = options.beta * (pairs.margins - options.penalty * lost)
    return batch.mean(bradley_terry(z)), pairs.metrics(pairs.rewards(options.beta))


@loss(extends="dpo", options=ShiftOptions)
def dpo_shift(batch: Batch, logprobs: Logprobs, options: ShiftOptions) -> LossAndMetrics:
    """DPO-Shift: the rejected reward counts less, which raises the chosen's likelihood.

    Formula: -log sigma(beta (h_w - shift h_l))
    Paper: Yang et al., 2025, arXiv 2502.07599, with its function of lambda constant
    Defaults: the authors' six full recipes (dpo_lambda 0.7 of 0.55 to 0.95); their two QLoRA recipes have
        beta 0.1
    Use: trading margin for likelihood of the chosen, by one number
    """
    pairs = Pairs.of(batch, logprobs)
    chosen, rejected = rewards = pairs.rewards(options.beta)
    return batch.mean(bradley_terry(chosen - options.shift * rejected)), pairs.metrics(rewards)


@loss(extends="dpo", options=AnchoredOptions)
def minor_dpo(batch: Batch, logprobs: Logprobs, options: AnchoredOptions) -> LossAndMetrics:
    """MinorDPO: punish the rejected only while it is likelier than under the reference.

    Formula: -log sigma(beta (h_w - max(0, h_l)))
    Paper: Xie et al., 2024, arXiv 2408.09834
    Defaults: beta is DPO's; the paper's could not be confirmed
    Use: DPO goes on pushing rejected completions down long after they are unlikely
    """
    pairs = Pairs.of(batch, logprobs)
    chosen, rejected = rewards = pairs.rewards(options.beta)
    return batch.mean(bradley_terry(chosen - torch.relu(rejected))), pairs.metrics(rewards)


@loss(extends="dpo", options=RPOOptions, metrics={"nll": NLL})
def rpo(batch: Batch, logprobs: Logprobs, options: RPOOptions) -> LossAndMetrics:
    """RPO: DPO plus the NLL of the chosen completions per token.

    Formula: -log sigma(beta (h_w - h_l)) - alpha m_w
    Paper: Iterative RPO, Pang et al., 2024, arXiv 2404.19733, eq. 1
    Defaults: the paper's experimental setup, second hand
    Use: reasoning, and wherever the chosen completions are worth imitating
    """
    pairs = Pairs.of(batch, logprobs)
    nll = sequence_nll(batch, pairs)
    value = batch.mean(bradley_terry(options.beta * pairs.margins)) + options.alpha * nll
    return value, pairs.metrics(pairs.rewards(options.beta)) | {"nll": float(nll.detach())}
