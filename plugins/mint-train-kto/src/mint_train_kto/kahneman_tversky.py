"""The Kahneman-Tversky loss on log-ratios of single completions, and its baseline."""

from __future__ import annotations

import torch

from mint_train.plugin import Batch


def kl_baseline(batch: Batch, ratios: torch.Tensor) -> torch.Tensor:
    """Estimate z_0 = KL(pi || pi_ref) as max(0, mean of the log-ratios), a scalar without gradient.

    Ethayarajh et al. (2024, arXiv 2402.01306), section 4.1: the log-ratios are those of completions y' on
    prompts x that they were not written for, and no gradient passes through z_0.

    Args:
        batch: the examples.
        ratios: log-ratios, nats, `[examples]`.
    """
    return batch.mean(ratios.detach()).clamp(min=0)


def kahneman_tversky(
    ratios: torch.Tensor,
    baseline: torch.Tensor,
    desirable: torch.Tensor,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> torch.Tensor:
    """Compute lambda_y - v(x, y), `[examples]` (Ethayarajh et al., 2024, arXiv 2402.01306, eq. 8).

    v is lambda_D sigma(beta (r - z_0)) for a desirable completion and lambda_U sigma(beta (z_0 - r)) for an
    undesirable one. It is computed as lambda_y sigma(-...), which loses nothing where sigma is close to 1.

    Args:
        ratios: r, nats, `[examples]`.
        baseline: z_0, nats, a scalar.
        desirable: bool `[examples]`.
        beta: how fast the value saturates.
        desirable_weight: lambda_D.
        undesirable_weight: lambda_U.
    """
    gains = torch.where(desirable, ratios - baseline, baseline - ratios)
    # torch.where of two Python numbers would round them to float32
    weights = torch.full_like(gains, undesirable_weight).masked_fill(desirable, desirable_weight)
    return weights * torch.sigmoid(-beta * gains)


def rating_metrics(
    ratios: torch.Tensor, baseline: torch.Tensor, desirable: torch.Tensor, beta: float
) -> dict[str, float]:
    """Summarise a batch: accuracy is the share of completions on their own side of the baseline.

    The rewards are beta times the log-ratio, averaged per label; a label that the batch lacks has none.
    """
    with torch.no_grad():
        rewards = beta * ratios
        metrics = {
            "accuracy": float(((ratios > baseline) == desirable).float().mean()),
            "kl": float(baseline),
        }
        for name, chosen in (("desirable", desirable), ("undesirable", ~desirable)):
            if chosen.any():
                metrics[f"rewards/{name}"] = float(rewards[chosen].mean())
    return metrics
