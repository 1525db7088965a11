"""Losses that hold the policy near the reference: to be added to others, as in `dpo+0.01*kl`.

In the formulas h_t is the log-ratio of policy and reference for token t; means are over all trained tokens of
the batch, chosen and rejected.
"""

from __future__ import annotations

import torch

from mint_train.plugin import Batch, loss, packed_logprobs, packed_reference_logprobs
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs
from mint_train_preferences.options import ReferenceOptions
from mint_train_preferences.stable_math import exp_with_linear_tail


@loss(extends="dpo", options=ReferenceOptions)
def kl(batch: Batch, logprobs: Logprobs) -> LossAndMetrics:
    """KL to the reference, estimated at the data's tokens; never negative, 0 where the two agree.

    The estimate is unbiased where the policy itself wrote the tokens; on other data it is a distance of the
    same kind, not the KL. The KL over the vocabulary cannot be had from logprobs of target tokens.

    Formula: mean exp(-h_t) - 1 + h_t
    Paper: Schulman, 2020, "Approximating KL divergence", k3; as in GRPO, arXiv 2402.03300, eq. 4
    Use: a leash on any loss: `simpo+0.05*kl`
    """
    value = token_mean(batch, kl_estimates(batch, logprobs))
    return value, Pairs.of(batch, logprobs).metrics()


@loss(extends="dpo", options=ReferenceOptions)
def squared_log_ratio(batch: Batch, logprobs: Logprobs) -> LossAndMetrics:
    """Mean squared log-ratio of policy and reference, per token.

    Formula: mean h_t^2
    Paper: twice Schulman's k2 (2020, "Approximating KL divergence")
    Use: a leash that pulls the same both ways: `dpo+0.1*sft+0.001*squared-log-ratio`
    """
    value = token_mean(batch, token_log_ratios(batch, logprobs).square())
    return value, Pairs.of(batch, logprobs).metrics()


def kl_estimates(batch: Batch, logprobs: Logprobs) -> torch.Tensor:
    """Estimate the KL to the reference at each target token (k3), nats, `[tokens]`."""
    log_ratios = token_log_ratios(batch, logprobs)
    return exp_with_linear_tail(-log_ratios) - 1 + log_ratios


def token_log_ratios(batch: Batch, logprobs: Logprobs) -> torch.Tensor:
    """Compute log pi - log pi_ref of each target token, nats, `[tokens]`."""
    policy = packed_logprobs(logprobs)
    return policy - packed_reference_logprobs(batch).to(policy.dtype)


def token_mean(batch: Batch, values: torch.Tensor) -> torch.Tensor:
    """Average values `[tokens]` over the batch's trained tokens, weighted; a scalar."""
    counted = batch.group_weights.repeat_interleave(batch.group_sizes)
    weights = counted.repeat_interleave(batch.lengths) * batch.weights
    return (values.double() * weights).sum() / (counted * batch.trained_tokens).sum()
