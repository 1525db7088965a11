"""DPO whose temperature, margin or weights follow the policy as it learns; what adapts carries no gradient.

In the formulas w is the chosen and l the rejected completion, h the log-ratio of policy and reference,
m the policy's logprob per token, and sg stops the gradient.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from mint_train.plugin import Batch, Metric, Options, Vocabulary, loss, segment_sums
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs, bradley_terry, chosen_and_rejected
from mint_train_preferences.options import AnchoredOptions, Beta
from mint_train_preferences.running_mean import running_mean
from mint_train_preferences.stable_math import probabilities
from mint_train_preferences.whole_batch import note_single_pair

SMALLEST_BETA = 1e-3
SMALLEST_SPREAD = 1e-6
TIE = 1e-5
NO_WEIGHT = 1e-300
"""Stands for a weight of 0, which has no logarithm."""
MIRROR_STEPS = 19


class BetaDPOOptions(AnchoredOptions):
    """Beta (the paper's beta_0), and how it follows the batch."""

    alpha: float = Field(default=0.6, ge=0, description="How strongly beta follows the batch's margin.")
    keep: float = Field(default=0.8, gt=0, le=1, description="Share of the pairs kept (rho).")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="How much of the old mean a step keeps.")


class GammaPOOptions(Options):
    """SimPO's beta and target margin, and how freely margins are dealt out."""

    beta: Beta = 10.0
    gamma: float = Field(default=4.0, ge=0, description="Target margin of an average pair.")
    tau: float = Field(default=10.0, gt=0, description="How much alike the margins of a batch are kept.")


class WPOOptions(AnchoredOptions):
    """WPO's beta, and its alignment."""

    beta: Beta = 0.01
    alignment: bool = Field(
        default=True,
        description="Compare with a token drawn from the policy; false on a service, which cannot give that.",
    )


def of_alignment(options: WPOOptions) -> tuple[str, ...]:
    """Name what the alignment needs of the vocabulary."""
    return ("log_expected_prob",) if options.alignment else ()


class AlphaDPOOptions(AnchoredOptions):
    """Beta, the target margin, and how it follows the pair; the authors' gamma_beta_ratio is gamma/beta."""

    beta: Beta = 2.5
    gamma: float = Field(default=1.5, ge=0, description="Target margin of an average pair.")
    alpha: float = Field(default=0.2, ge=0, description="How far the target follows the pair; 0 is SimPO.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="How much of the old moments a step keeps.")


@loss(
    extends="dpo",
    options=BetaDPOOptions,
    metrics={"beta": Metric(kind="batch"), "kept": Metric(".2f", kind="batch")},
    traits={"STOPS_GRADIENT": True},
)
def beta_dpo(
    batch: Batch, logprobs: Logprobs, options: BetaDPOOptions, state: MutableMapping[str, float]
) -> LossAndMetrics:
    """beta-DPO: beta follows the batch's mean margin, and pairs with outlying margins are left out.

    The paper draws the pairs that it keeps with weights exp(-(M - M_0)^2 / 2 s^2); here the likeliest are
    kept, those nearest M_0, so that a run can be repeated. Beta is at least 0.001, as in the authors' code;
    M_0 begins at the first batch's mean, where theirs begins at 0.

    Formula: -log sigma(beta' (h_w - h_l)), the mean over kept pairs; M = sg(h_w - h_l),
        beta' = beta (1 + alpha (mean M of kept pairs - M_0)), M_0 the running mean of M
    Paper: Wu et al., 2024, arXiv 2407.08639, section 4
    Defaults: the authors' code
    Use: pairs of mixed quality
    """
    pairs = Pairs.of(batch, logprobs)
    margins = pairs.margins.detach()
    center = running_mean(state, "mean_margin", batch.mean(margins), options.momentum)
    kept = nearest(batch, (margins - center).abs(), options.keep)
    part = Batch([group for group, is_kept in zip(batch.groups, kept.tolist(), strict=True) if is_kept])
    beta = options.beta * (1 + options.alpha * float(part.mean(margins[kept]) - center))
    beta = max(beta, SMALLEST_BETA)
    metrics = pairs.metrics(pairs.rewards(beta)) | {"beta": beta, "kept": float(kept.double().mean())}
    return part.mean(bradley_terry(beta * pairs.margins[kept])), metrics


@loss(extends="dpo", options=AlphaDPOOptions, traits={"STOPS_GRADIENT": True})
def alpha_dpo(
    batch: Batch, logprobs: Logprobs, options: AlphaDPOOptions, state: MutableMapping[str, float]
) -> LossAndMetrics:
    """alpha-DPO: SimPO whose target margin grows where the policy has moved away from the reference.

    The authors' code averages the standard deviations of batches, from 0 on; here the mean square around the
    running mean is averaged, from the first batch on, so that batches of one pair are possible.

    Formula: -log sigma(beta (m_w - m_l - sg(alpha M)) - gamma), M = h_w/|y_w| - h_l/|y_l| in units of its
        running standard deviation from its running mean
    Paper: Wu et al., 2024, arXiv 2410.10148; alpha times beta, as in the authors' code
    Defaults: the authors' llama-3-8b-instruct-alpha-dpo.yaml, with gamma_beta_ratio 0.6; momentum as for
        beta-dpo
    Use: SimPO, with a reference to hand that tells easy pairs from hard ones
    """
    pairs = Pairs.of(batch, logprobs)
    chosen, rejected = (log_ratios.detach() for log_ratios in pairs.mean_log_ratios)
    moved = chosen - rejected
    deviations = moved - running_mean(state, "mean_margin", batch.mean(moved), options.momentum)
    variance = running_mean(state, "margin_variance", batch.mean(deviations.square()), options.momentum)
    surplus = options.alpha * deviations / (math.sqrt(variance) + SMALLEST_SPREAD)
    target = options.gamma + options.beta * surplus
    chosen, rejected = (options.beta * m for m in pairs.mean_logprobs)
    return batch.mean(bradley_terry(chosen - rejected - target)), pairs.metrics((chosen, rejected))


@loss(
    extends="dpo",
    options=WPOOptions,
    metrics={"weight": Metric()},
    vocabulary=of_alignment,
    traits={"STOPS_GRADIENT": True},
)
def wpo(batch: Batch, logprobs: Logprobs, options: WPOOptions, vocabulary: Vocabulary) -> LossAndMetrics:
    """WPO: pairs that the policy might have written itself count more.

    The alignment divides each token's probability by that of a token that the policy draws, on average. It
    needs the whole vocabulary, which only the embedded backend gives. Without it weights are smaller, the
    more so the less certain the policy is, and a flat policy has no weight of 1.

    Formula: -sg(min(exp(a_w + a_l), 1)) log sigma(beta (h_w - h_l)), a the mean over tokens of
        log pi(y) - log(sum of pi(v)^2 over the vocabulary); with alignment=false, a = m
    Paper: Zhou et al., 2024, arXiv 2406.11827, eq. 2; as in the authors' code
    Defaults: beta is that of the authors' llama3_instruct.yaml and mistral-base.yaml
    Use: pairs from other models, which DPO would treat as the policy's own
    """
    pairs = Pairs.of(batch, logprobs)
    chosen, rejected = (m.detach() for m in pairs.mean_logprobs)
    if options.alignment:
        expected = segment_sums(vocabulary["log_expected_prob"].detach(), batch.lengths, batch.weights)
        of_chosen, of_rejected = pairs.per_token(chosen_and_rejected(expected))
        chosen, rejected = chosen - of_chosen, rejected - of_rejected
    weights = probabilities(chosen + rejected)
    losses = -weights * logsigmoid(options.beta * pairs.margins)
    return batch.mean(losses), pairs.metrics(pairs.rewards(options.beta)) | {"weight": float(weights.mean())}


@loss(extends="dpo", options=GammaPOOptions, traits={"STOPS_GRADIENT": True})
def gamma_po(batch: Batch, logprobs: Logprobs, options: GammaPOOptions) -> LossAndMetrics:
    """gamma-PO: SimPO with a target margin per pair, greater where the pair is already told apart.

    The margins average gamma over the batch. They minimise the batch's losses and tau times their divergence
    from equal margins, by steps of mirror descent. The authors' runs draw past pairs from a queue into the
    batch; here, as in their other form, the batch stands alone, so that a run can be repeated.

    Formula: -log sigma(beta (m_w - m_l) - sg(gamma n q)), n the pairs of the batch, q the probabilities that
        minimise the sum of -log sigma(beta (m_w - m_l) - gamma n q)/n + tau q log(n q)
    Paper: Sun et al., 2025, arXiv 2506.03690; as in the authors' code
    Defaults: the authors' llama-3-8b-it-gmsimpo-beta10-gm0.4-tau10-lr1e-6.yaml
    Use: SimPO on pairs of which some are ambiguous or mislabelled; wants larger batches
    """
    pairs = Pairs.of(batch, logprobs, reference=False)
    chosen, rejected = (options.beta * m for m in pairs.mean_logprobs)
    targets = deal_margins(batch, (chosen - rejected).detach(), options)
    return batch.mean(bradley_terry(chosen - rejected - targets)), pairs.metrics((chosen, rejected))


def nearest(batch: Batch, distances: torch.Tensor, share: float) -> torch.Tensor:
    """Return which pairs are the nearest share of the batch, bool `[pairs]`; one at least.

    A pair of weight 2 is two pairs at the same distance, and counts as kept if one of them is.

    Args:
        batch: the pairs.
        distances: `[pairs]`, no gradient.
        share: how many of the pairs are kept, above 0 and at most 1.
    """
    order = distances.argsort(stable=True)
    weights = batch.group_weights[order]
    count = max(1, math.floor(share * float(weights.sum())))
    # the pairs before the first one with which there are enough
    before = int((weights.cumsum(0) < count).sum())
    # rounding must not part pairs that are equally far
    return distances <= distances[order[min(before, len(order) - 1)]] * (1 + TIE)


def deal_margins(batch: Batch, gaps: torch.Tensor, options: GammaPOOptions) -> torch.Tensor:
    """Deal target margins, gamma on average, to pairs: more to those with greater gaps, `[pairs]`.

    Args:
        batch: the pairs.
        gaps: chosen minus rejected reward, `[pairs]`, no gradient.
        options: gamma, the mean target margin, and tau, the weight of the divergence from equal margins.
    """
    gamma, tau, count = options.gamma, options.tau, batch.total_weight
    log_weights = batch.group_weights.clamp(min=NO_WEIGHT).to(gaps.dtype).log()
    rate = min(0.5 / tau, 1)
    log_shares = torch.full_like(gaps, -math.log(count))
    for _ in range(MIRROR_STEPS):
        targets = gamma * count * log_shares.exp()
        pull = gamma * torch.sigmoid(targets - gaps)
        slope = tau * (1 + math.log(count) + log_shares) + pull
        # a pair of weight 2 has the share of each of two pairs
        shares_of_weights = torch.log_softmax(log_shares - rate * slope + log_weights, dim=0)
        log_shares = shares_of_weights - log_weights
    return gamma * count * log_shares.exp()


beta_dpo.answer("data_note", note_single_pair)
gamma_po.answer("data_note", note_single_pair)
