"""LiPO-lambda: pairs of a ranking, each weighted by what swapping it costs in DCG (Liu et al., 2024).

In the formula s = beta h is a completion's score, h its log-ratio of policy and reference, and D_ij the
change of DCG, without gradient, when completions i and j are swapped in the order of the scores.

Formula: sum over pairs with i above j of D_ij log(1 + exp(s_j - s_i))
Paper: Liu et al., 2024, arXiv 2402.01878, the lambda loss
Defaults: beta is DPO's; the paper's could not be confirmed
Use: rankings whose top matters most, or with scores that say by how much
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import softplus

from mint_train.plugin import Batch, hookimpl, log_ratios
from mint_train_ranking.lists import LABEL, ordered_pairs, pad_lists, ranking_metrics
from mint_train_ranking.plackett_luce import PlackettLuceOptions

EXTENDS = "plackett-luce"


def lambda_weights(labels: torch.Tensor, scores: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Compute Delta_ij = |G_i - G_j| |1/D(tau_i) - 1/D(tau_j)|, `[lists, longest, longest]`, no gradient.

    The gain is G = 2^psi - 1, the discount D(tau) = log(1 + tau), and tau the rank, from 1, that the current
    scores give a completion.

    Args:
        labels: psi in [0, 1], `[lists, longest]`.
        scores: `[lists, longest]`.
        real: which positions hold a completion, bool `[lists, longest]`.
    """
    with torch.no_grad():
        by_score = scores.masked_fill(~real, -torch.inf).argsort(dim=1, descending=True, stable=True)
        ranks = by_score.argsort(dim=1) + 1
        gains = torch.exp2(labels)
        discounts = 1 / torch.log1p(ranks.to(scores.dtype))
        return (gains[:, :, None] - gains[:, None, :]).abs() * (
            discounts[:, :, None] - discounts[:, None, :]
        ).abs()


@hookimpl
def compute_loss(
    batch: Batch, logprobs: Sequence[torch.Tensor], options: PlackettLuceOptions
) -> tuple[torch.Tensor, dict[str, float]]:
    """Sum Delta_ij log(1 + exp(s_j - s_i)) over pairs with i above j, the mean over lists.

    The labels psi are the row's scores, else the ranks, rescaled to [0, 1] within each list.
    """
    scores = options.beta * log_ratios(logprobs, batch)
    rows, real = pad_lists(scores, batch.group_sizes)
    labels, _ = pad_lists(batch.attached(LABEL).to(scores.dtype), batch.group_sizes)
    weights = torch.where(ordered_pairs(real), lambda_weights(labels, rows, real), 0.0)
    losses = (weights * softplus(rows[:, None, :] - rows[:, :, None])).sum((1, 2))
    return batch.mean(losses), ranking_metrics(scores, batch.group_sizes)
