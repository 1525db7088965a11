"""LiPO-lambda: pairs of a ranking, each weighted by what swapping it costs in DCG (Liu et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import softplus

from mint_train import Batch, hookimpl, log_ratios
from mint_train_ranking.contract import LABEL
from mint_train_ranking.lists import ordered_pairs, pad_lists, ranking_metrics
from mint_train_ranking.plackett_luce import PlackettLuceOptions

EXTENDS = "plackett-luce"


def lambda_weights(labels: torch.Tensor, scores: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Compute Delta_ij = |G_i - G_j| |1/D(tau_i) - 1/D(tau_j)|, `[lists, longest, longest]`, no gradient.

    The gain is G = 2^psi - 1, the discount D(tau) = log(1 + tau), and tau the place, from 1, that the current
    scores give a completion.

    Args:
        labels: psi in [0, 1], `[lists, longest]`.
        scores: `[lists, longest]`.
        real: which places of a list are filled, bool `[lists, longest]`.
    """
    with torch.no_grad():
        by_score = scores.masked_fill(~real, -torch.inf).argsort(dim=1, descending=True, stable=True)
        places = by_score.argsort(dim=1) + 1
        gains = torch.exp2(labels)
        discounts = 1 / torch.log1p(places.to(scores.dtype))
        return (gains[:, :, None] - gains[:, None, :]).abs() * (
            discounts[:, :, None] - discounts[:, None, :]
        ).abs()


@hookimpl
def compute_loss(
    batch: Batch, logprobs: Sequence[torch.Tensor], options: PlackettLuceOptions
) -> tuple[torch.Tensor, dict[str, float]]:
    """Sum Delta_ij log(1 + exp(s_j - s_i)) over pairs with i above j, the mean over lists.

    The lambda loss of Liu et al. (2024, arXiv 2402.01878), with s = beta (log pi - log pi_ref). The labels
    psi are the row's scores, else the places, rescaled to [0, 1] within each list.
    """
    scores = options.beta * log_ratios(logprobs, batch)
    rows, real = pad_lists(scores, batch.group_sizes)
    labels, _ = pad_lists(batch.attached(LABEL).to(scores.dtype), batch.group_sizes)
    weights = torch.where(ordered_pairs(real), lambda_weights(labels, rows, real), 0.0)
    loss = (weights * softplus(rows[:, None, :] - rows[:, :, None])).sum((1, 2)).mean()
    return loss, ranking_metrics(scores, batch.group_sizes)
