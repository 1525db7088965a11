"""DPO that does not reward length.

In the formulas w is the chosen and l the rejected completion, |y| a completion's tokens, h the log-ratio of
policy and reference, and h_t that of its token t.
"""

from __future__ import annotations

import torch
from pydantic import Field

from mint_train.plugin import Batch, loss
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs, bradley_terry
from mint_train_preferences.options import AnchoredOptions, Beta


class NormOptions(AnchoredOptions):
    """Tulu 3's beta: a mean over tokens is small beside a sum."""

    beta: Beta = 5.0


class RDPOOptions(AnchoredOptions):
    """Beta, and the price of a token."""

    alpha: float = Field(default=0.05, ge=0, description="Reward taken off per token of length.")


class LDOptions(AnchoredOptions):
    """Beta, and what the longer completion's surplus counts."""

    alpha: float = Field(
        default=0.5, ge=0, le=1, description="Weight of tokens past the shorter one's length; 1 is DPO."
    )


class DecayOptions(AnchoredOptions):
    """Beta, and the decay per token."""

    gamma: float = Field(
        default=0.98, gt=0, le=1, description="Weight of a token relative to the one before."
    )


@loss(extends="dpo", options=NormOptions)
def dpo_norm(batch: Batch, logprobs: Logprobs, options: NormOptions) -> LossAndMetrics:
    """Length-normalised DPO: log-ratios per token.

    Formula: -log sigma(beta (h_w/|y_w| - h_l/|y_l|))
    Paper: Tulu 3, Lambert et al., 2024, arXiv 2411.15124
    Defaults: the Tulu 3 8B configuration of open-instruct
    Use: completions of very different length; needs a larger beta than DPO
    """
    pairs = Pairs.of(batch, logprobs)
    chosen, rejected = (options.beta * h for h in pairs.mean_log_ratios)
    return batch.mean(bradley_terry(chosen - rejected)), pairs.metrics((chosen, rejected))


@loss(extends="dpo", options=RDPOOptions)
def r_dpo(batch: Batch, logprobs: Logprobs, options: RDPOOptions) -> LossAndMetrics:
    """R-DPO: DPO with a price per token, so that length alone does not win.

    Formula: -log sigma(beta (h_w - h_l) + alpha (|y_w| - |y_l|))
    Paper: Park et al., 2024, arXiv 2403.19159
    Defaults: beta is DPO's; alpha is not confirmed at a source
    Use: the chosen completions are longer for no good reason
    """
    pairs = Pairs.of(batch, logprobs)
    surplus = pairs.chosen_tokens - pairs.rejected_tokens
    z = options.beta * pairs.margins + options.alpha * surplus
    return batch.mean(bradley_terry(z)), pairs.metrics(pairs.rewards(options.beta))


@loss(extends="dpo", options=AnchoredOptions)
def sampo(batch: Batch, logprobs: Logprobs, options: AnchoredOptions) -> LossAndMetrics:
    """SamPO: compare as many tokens of each completion as the shorter one has.

    The paper draws the longer completion's tokens at random; here their log-ratio is its expectation, so that
    a run can be repeated and the loss is a function of its inputs.

    Formula: -log sigma(beta n (h_w/|y_w| - h_l/|y_l|)), n = min(|y_w|, |y_l|)
    Paper: Lu et al., 2024, arXiv 2406.10957
    Defaults: beta is DPO's and that of the authors' code
    Use: verbosity grows in training, and dpo-norm is too weak on short pairs
    """
    pairs = Pairs.of(batch, logprobs)
    shorter = torch.minimum(pairs.chosen_tokens, pairs.rejected_tokens)
    chosen, rejected = (options.beta * shorter * h for h in pairs.mean_log_ratios)
    return batch.mean(bradley_terry(chosen - rejected)), pairs.metrics((chosen, rejected))


@loss(extends="dpo", options=LDOptions)
def ld_dpo(batch: Batch, logprobs: Logprobs, options: LDOptions) -> LossAndMetrics:
    """LD-DPO: play down the tokens by which one completion is longer than the other.

    Formula: -log sigma(beta (h'_w - h'_l)), h' = sum of h_t for t <= n + alpha sum of h_t for t > n,
        n = min(|y_w|, |y_l|)
    Paper: Liu et al., 2024, arXiv 2409.06411
    Defaults: beta is DPO's; alpha is the paper's, second hand (TRL)
    Use: length bias, with control over how much of the surplus counts
    """
    positions = completion_positions(batch)
    shorter = batch.trained_tokens.view(-1, 2).amin(dim=1).repeat_interleave(2)
    surplus = positions > shorter.repeat_interleave(batch.lengths)
    return weighted_dpo(batch, logprobs, options.beta, torch.where(surplus, options.alpha, 1.0))


@loss(extends="dpo", options=DecayOptions)
def d2po(batch: Batch, logprobs: Logprobs, options: DecayOptions) -> LossAndMetrics:
    """D2PO: earlier tokens count more, by a constant decay.

    The authors' code gives the first token a weight of gamma, not 1, which is the same as a beta times gamma.

    Formula: -log sigma(beta (h'_w - h'_l)), h' = sum of gamma^(t - 1) h_t
    Paper: Shao et al., 2025, arXiv 2502.14340
    Defaults: the authors' llama3_full_d2po.yaml
    Use: what decides a preference comes early; also curbs length
    """
    exponents = (completion_positions(batch) - 1).clamp(min=0)
    return weighted_dpo(batch, logprobs, options.beta, options.gamma ** exponents.double())


def completion_positions(batch: Batch) -> torch.Tensor:
    """Count each datum's trained tokens from 1; 0 where nothing is trained. int64 `[tokens]`."""
    trained = batch.weights != 0
    before = (batch.trained_tokens.cumsum(0) - batch.trained_tokens).repeat_interleave(batch.lengths)
    return (trained.cumsum(0) - before) * trained


def weighted_dpo(batch: Batch, logprobs: Logprobs, beta: float, factors: torch.Tensor) -> LossAndMetrics:
    """Compute DPO with a factor per token, `[tokens]`, on both sides of the log-ratio."""
    weighted = Pairs.of(batch, logprobs, weights=batch.weights * factors)
    metrics = Pairs.of(batch, logprobs).metrics(weighted.rewards(beta))
    return batch.mean(bradley_terry(beta * weighted.margins)), metrics
