"""NCA on lists: each completion against noise, so that the likelihood of good ones does not fall.

In the formula v is the weight of a completion, the softmax of the list's scores over the temperature, h its
log-ratio of policy and reference, and K the length of the list.

Formula: -sum of v log sigma(beta h) + (1/K) log sigma(-beta h), over the list
Paper: Chen et al., 2024, arXiv 2402.05369; as in the authors' code
Defaults: the authors' reward_qlora.yaml; so low a temperature gives the best completion all the weight
Use: as infonca, where the likelihood of the best completions falls; lists of two make it nca
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import logsigmoid

from mint_train.plugin import Batch, hookimpl, log_ratios
from mint_train_ranking.infonca import InfoNCAOptions, weights_and_rewards
from mint_train_ranking.lists import ranking_metrics

EXTENDS = "infonca"


@hookimpl
def compute_loss(
    batch: Batch, logprobs: Sequence[torch.Tensor], options: InfoNCAOptions
) -> tuple[torch.Tensor, dict[str, float]]:
    """Compute how well each completion is told from noise, the mean over lists."""
    rewards = options.beta * log_ratios(logprobs, batch)
    weights, padded, real = weights_and_rewards(batch, rewards, options.temperature)
    raised = (weights * logsigmoid(padded)).sum(1)
    lowered = torch.where(real, logsigmoid(-padded), 0.0).sum(1) / batch.group_sizes
    return -batch.mean(raised + lowered), ranking_metrics(rewards, batch.group_sizes)
