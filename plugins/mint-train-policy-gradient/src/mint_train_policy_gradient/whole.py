"""Losses on groups of samples that weigh or clip whole completions, or that weigh without clipping.

In the formulas A is an advantage and r a token's ratio: its probability under the policy, divided by that
under the policy that sampled it. T is the number of tokens of a completion, p its logprob, p_t a token's, and
sg stops the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mint_train.plugin import Batch, loss
from mint_train_policy_gradient.options import (
    CISPOOptions,
    GMPOOptions,
    GSPOOptions,
    RLOOOptions,
    SAPOOptions,
    TOPROptions,
)
from mint_train_policy_gradient.reinforce import with_kl
from mint_train_policy_gradient.samples import METRICS, LossAndMetrics, Samples, clipped_gains

UNCLIPPED = {name: metric for name, metric in METRICS.items() if name != "clipped"}


@loss(extends="reinforce", options=RLOOOptions, metrics=METRICS)
def rloo(batch: Batch, logprobs: Sequence[torch.Tensor], options: RLOOOptions) -> LossAndMetrics:
    """RLOO: each completion against the mean reward of the group's others, its ratio clipped as one.

    At the policy that sampled, the gradient is the paper's, that of -A p; the ratio and its clip are TRL's.

    Formula: -min(R A, clip(R, 1 - clip, 1 + clip_high) A), R = product of r over the completion,
        the mean over completions; A = reward - mean of the group's others
    Paper: Ahmadian et al., 2024, arXiv 2402.14740; Kool et al., 2019
    Defaults: those of TRL, second hand
    Use: few completions of each prompt
    """
    samples = Samples.of(batch, logprobs, options.advantage)
    ratios, worth = samples.sequence_ratios(per_token=False), samples.sequence_advantages
    gains = clipped_gains(ratios, worth, options.clip, options.clip_high)
    value = with_kl(-samples.sequence_mean(gains), samples, options, "none")
    return value, samples.metrics(gains < ratios * worth)


@loss(extends="reinforce", options=GSPOOptions, metrics=METRICS)
def gspo(batch: Batch, logprobs: Sequence[torch.Tensor], options: GSPOOptions) -> LossAndMetrics:
    """GSPO: GRPO with one ratio per completion, the geometric mean of its tokens'.

    Formula: -min(s A, clip(s, 1 - clip, 1 + clip_high) A), s = exp(mean log r over the completion),
        the mean over completions; A as in grpo
    Paper: Zheng et al., 2025, arXiv 2507.18071, eq. 5
    Defaults: section 5.1 of the paper, second hand (TRL)
    Use: long answers and mixtures of experts, where ratios of tokens are noise
    """
    samples = Samples.of(batch, logprobs, options.advantage)
    ratios, worth = samples.sequence_ratios(per_token=True), samples.sequence_advantages
    gains = clipped_gains(ratios, worth, options.clip, options.clip_high)
    value = with_kl(-samples.sequence_mean(gains), samples, options, "sequences")
    return value, samples.metrics(gains < ratios * worth)


@loss(extends="reinforce", options=CISPOOptions, metrics=UNCLIPPED, traits={"STOPS_GRADIENT": True})
def cispo(batch: Batch, logprobs: Sequence[torch.Tensor], options: CISPOOptions) -> LossAndMetrics:
    """CISPO: REINFORCE on tokens weighted by their ratio, which is cut and not clipped: no token is left out.

    Formula: -sg(min(r, upper)) A p_t, the mean over all tokens; A as in grpo
    Paper: MiniMax, 2025, arXiv 2506.13585, eq. 4, without a lower bound
    Defaults: upper is that of ScaleRL (arXiv 2510.13786), second hand (TRL)
    Use: rare tokens that turn an answer round matter, and clipping would leave them out
    """
    samples = Samples.of(batch, logprobs, options.advantage)
    weights = samples.ratios.detach().clamp(max=options.upper)
    value = -samples.token_mean(weights * samples.advantages * samples.policy, options.average)
    return with_kl(value, samples, options, options.average), samples.metrics()


@loss(extends="reinforce", options=GMPOOptions, metrics=METRICS)
def gmpo(batch: Batch, logprobs: Sequence[torch.Tensor], options: GMPOOptions) -> LossAndMetrics:
    """GMPO: the geometric mean of tokens' ratios, each clipped first and more widely than in GRPO.

    Formula: -A exp(mean l over the completion), the mean over completions; l = min(log r,
        clip(log r, -clip, clip_high)) where A > 0, max of the two where A < 0; A as in grpo
    Paper: Zhao et al., 2025, arXiv 2507.20673; as in verl
    Defaults: the bounds e^-0.4 and e^0.4 are from section 4 of the paper, second hand (TRL)
    Use: GRPO whose ratios have outliers
    """
    samples = Samples.of(batch, logprobs, options.advantage)
    worth = samples.sequence_advantages
    sign = worth.sign().repeat_interleave(batch.lengths).to(samples.logs.dtype)
    bounded = samples.logs.clamp(-options.clip, options.clip_high)
    logs = sign * torch.minimum(sign * samples.logs, sign * bounded)
    ratios = (samples.per_completion(logs) / batch.trained_tokens).exp()
    value = with_kl(-samples.sequence_mean(ratios * worth), samples, options, "sequences")
    return value, samples.metrics(logs != samples.logs)


@loss(extends="reinforce", options=SAPOOptions, metrics=UNCLIPPED)
def sapo(batch: Batch, logprobs: Sequence[torch.Tensor], options: SAPOOptions) -> LossAndMetrics:
    """SAPO: a soft gate instead of the clip: the gradient fades as a ratio leaves 1.

    Formula: -(4/t) sigma(t (r - 1)) A, the mean over each completion's tokens and then over completions;
        t = tau where A > 0, else tau_negative; A as in grpo
    Paper: Qwen team, 2025, arXiv 2511.20347; as in TRL
    Defaults: the paper's, second hand (TRL)
    Use: GRPO or GSPO where clipping throws too much away
    """
    samples = Samples.of(batch, logprobs, options.advantage)
    tau = torch.full_like(samples.ratios, options.tau_negative)
    tau = tau.masked_fill(samples.advantages > 0, options.tau)
    gates = torch.sigmoid(tau * (samples.ratios - 1)) * 4 / tau
    value = -samples.token_mean(gates * samples.advantages, options.average)
    return with_kl(value, samples, options, options.average), samples.metrics()


@loss(extends="reinforce", options=TOPROptions, metrics=UNCLIPPED, traits={"STOPS_GRADIENT": True})
def topr(batch: Batch, logprobs: Sequence[torch.Tensor], options: TOPROptions) -> LossAndMetrics:
    """TOPR: good completions are imitated, bad ones lowered only as far as the policy still writes them.

    Formula: -A p where A >= 0, -sg(min(R, 1)) A p where A < 0, R = product of r over the completion,
        the mean over completions
    Paper: Le Roux et al., 2025, arXiv 2503.14286
    Defaults: rewards as they are, of both signs, as in the paper
    Use: old samples, bad ones among them, used many times
    """
    samples = Samples.of(batch, logprobs, options.advantage)
    worth, scores = samples.sequence_advantages, samples.per_completion(samples.policy)
    tapered = samples.sequence_ratios(per_token=False).detach().clamp(max=1)
    gains = torch.where(worth >= 0, 1.0, tapered) * worth * scores
    return with_kl(-samples.sequence_mean(gains), samples, options, "none"), samples.metrics()
