"""ListMLE on length-normalised logprobs: a ranking's likelihood, without reference (Xia et al., 2008).

In the formula s = beta m is a completion's score, m its mean token logprob.

Formula: sum over the best k of log(sum over j >= k of exp(s_j)) - s_k, completions best first
Paper: Xia et al., 2008, "Listwise approach to learning to rank"; the top-k form, Xia, Liu and Li, 2009,
    "Statistical consistency of top-k ranking"; mean token logprobs as in PRO, Song et al., 2023,
    arXiv 2306.17492
Defaults: choices made here: there is one logprob per token to scale
Use: rankings, without memory or time for a reference
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from mint_train.plugin import NO_REFERENCE, Batch, OptionalReference, Options, hookimpl
from mint_train_ranking.lists import mean_log_ratios, ranking_metrics
from mint_train_ranking.plackett_luce import plackett_luce_nll

EXTENDS = "plackett-luce"


class ListMLEOptions(Options):
    """The options of ListMLE."""

    beta: float = Field(default=1.0, gt=0, description="Scale of the mean token logprobs.")
    top_k: int | None = Field(default=None, ge=1, description="Count the best k ranks only.")
    reference: OptionalReference = NO_REFERENCE


@hookimpl
def loss_options() -> type[ListMLEOptions]:
    """Return the options of ListMLE."""
    return ListMLEOptions


@hookimpl
def compute_loss(
    batch: Batch, logprobs: Sequence[torch.Tensor], options: ListMLEOptions
) -> tuple[torch.Tensor, dict[str, float]]:
    """Compute -log P(ranking) of the scores beta (mean token logprob), the mean over lists."""
    scores = options.beta * mean_log_ratios(batch, logprobs)
    metrics = ranking_metrics(scores, batch.group_sizes)
    return batch.mean(plackett_luce_nll(scores, batch.group_sizes, options.top_k)), metrics
