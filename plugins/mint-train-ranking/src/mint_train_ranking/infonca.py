"""InfoNCA: completions against each other, each with the weight that its score gives it.

In the formula s is a completion's score in the row (where there are ranks, minus the rank), t the
temperature, and h its log-ratio of policy and reference.

Formula: -sum of v log softmax(beta h), v = softmax(s/t), both over the list
Paper: Chen et al., 2024, arXiv 2402.05369; as in the authors' code
Defaults: the authors' reward_qlora.yaml; so low a temperature gives the best completion all the weight
Use: lists with scores whose differences mean something; a higher temperature lets the good share the weight
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from mint_train.plugin import (
    AttachedDatum,
    Batch,
    NeededReference,
    Options,
    Renderer,
    attach,
    hookimpl,
    log_ratios,
)
from mint_train_ranking import plackett_luce
from mint_train_ranking.lists import pad_lists, ranking_metrics
from mint_train_ranking.rows import RankedCompletions

EXTENDS = "plackett-luce"
SCORE = "score"


class InfoNCAOptions(Options):
    """The options of InfoNCA and of NCA on lists."""

    beta: float = Field(default=0.01, gt=0, description="Scale of the log-ratios.")
    temperature: float = Field(default=1e-4, gt=0, description="Temperature of the scores.")
    reference: NeededReference = "initial"


@hookimpl
def loss_options() -> type[InfoNCAOptions]:
    """Return the options of InfoNCA."""
    return InfoNCAOptions


@hookimpl
def flatten(example: RankedCompletions, renderer: Renderer) -> list[AttachedDatum]:
    """Flatten a ranking into [best, ..., worst], each with its score attached."""
    datums = plackett_luce.flatten(example, renderer)
    return [
        attach(one.datum, **one.attached, **{SCORE: grade})
        for one, grade in zip(datums, example.grades, strict=True)
    ]


def weights_and_rewards(
    batch: Batch, rewards: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the softmax of the scores, the rewards, and which are real, all `[lists, longest]`."""
    padded, real = pad_lists(rewards, batch.group_sizes)
    scores, _ = pad_lists(batch.attached(SCORE), batch.group_sizes)
    weights = (scores / temperature).masked_fill(~real, -torch.inf).softmax(1)
    return weights.to(rewards.dtype), padded, real


@hookimpl
def compute_loss(
    batch: Batch, logprobs: Sequence[torch.Tensor], options: InfoNCAOptions
) -> tuple[torch.Tensor, dict[str, float]]:
    """Compute the cross-entropy from the scores' softmax to the rewards', the mean over lists."""
    rewards = options.beta * log_ratios(logprobs, batch)
    weights, padded, real = weights_and_rewards(batch, rewards, options.temperature)
    lowest = torch.finfo(padded.dtype).min
    logs = padded - padded.masked_fill(~real, lowest).logsumexp(1, keepdim=True)
    losses = -(weights * torch.where(real, logs, 0.0)).sum(1)
    return batch.mean(losses), ranking_metrics(rewards, batch.group_sizes)
