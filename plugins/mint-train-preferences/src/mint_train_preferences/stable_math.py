"""Functions of logprobs whose value and gradient stay finite wherever training takes them."""

from __future__ import annotations

import torch

EXPONENT_LIMIT = 30.0


def exp_with_linear_tail(values: torch.Tensor, limit: float = EXPONENT_LIMIT) -> torch.Tensor:
    """Compute exp(values), continued beyond the limit by its tangent, so that value and gradient stay finite.

    Args:
        values: floating, any shape.
        limit: where the straight line begins; exp(30) = 1e13.
    """
    return torch.exp(values.clamp(max=limit)) * (1 + torch.relu(values - limit))


def log1mexp(logprobs: torch.Tensor) -> torch.Tensor:
    """Compute log(1 - exp(logprobs)), the log of the complement's probability.

    Args:
        logprobs: floating, any shape; a probability of 1 counts as the greatest below it.
    """
    return torch.log(-torch.expm1(logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)))


def probabilities(logprobs: torch.Tensor) -> torch.Tensor:
    """Compute exp(logprobs), at most 1: rounding may leave a logprob a little above 0."""
    return torch.exp(logprobs.clamp(max=0))


def power_reward(log_ratios: torch.Tensor, alpha: float) -> torch.Tensor:
    """Compute (1 - u^-alpha) / alpha of u = exp(log_ratios); at alpha 0 its limit, the log-ratios themselves.

    Args:
        log_ratios: floating, any shape, in nats.
        alpha: 0 is the identity; positive values penalise negative log-ratios exponentially.
    """
    return log_ratios if alpha == 0 else (1 - exp_with_linear_tail(-alpha * log_ratios)) / alpha
