"""ListMLE on length-normalised logprobs: a ranking's likelihood, without reference (Xia et al., 2008)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field

from mint_train import Batch, hookimpl
from mint_train_ranking.lists import mean_log_ratios, ranking_metrics
from mint_train_ranking.plackett_luce import plackett_luce_nll

EXTENDS = "plackett-luce"


class ListMLEOptions(BaseModel):
    """The options of ListMLE."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    beta: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="Scale of the mean token logprobs."
    )
    top_k: int | None = Field(default=None, ge=1, description="Count the best k places only.")
    reference: str = Field(
        default="none", min_length=1, description="The reference: none, initial, a model or a checkpoint."
    )


@hookimpl
def loss_options() -> type[BaseModel]:
    """Options of the loss."""
    return ListMLEOptions


@hookimpl
def compute_loss(
    batch: Batch, logprobs: Sequence[torch.Tensor], options: ListMLEOptions
) -> tuple[torch.Tensor, dict[str, float]]:
    """-log P(ranking) of the scores beta (mean token logprob), the mean over lists.

    ListMLE is of Xia et al. (2008, "Listwise approach to learning to rank"), its top-k form of Xia, Liu and
    Li (2009, "Statistical consistency of top-k ranking"). PRO (Song et al., 2023, arXiv 2306.17492) scores a
    completion by its mean token logprob too.
    """
    scores = options.beta * mean_log_ratios(batch, logprobs)
    metrics = ranking_metrics(scores, batch.group_sizes)
    return plackett_luce_nll(scores, batch.group_sizes, options.top_k), metrics
