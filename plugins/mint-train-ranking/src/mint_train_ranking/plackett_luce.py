"""DPO for rankings: the Plackett-Luce likelihood of completions, best first (Rafailov et al., 2023).

In the formula s = beta h is a completion's score, h its log-ratio of policy and reference.

Formula: sum over k of log(sum over j >= k of exp(s_j)) - s_k, completions best first
Paper: Rafailov et al., 2023, arXiv 2305.18290, appendix A.3
Defaults: beta is DPO's
Use: rankings of more than two completions; lists of two make it DPO
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from pydantic import Field

from mint_train.plugin import (
    AttachedDatum,
    Batch,
    ContractError,
    Forms,
    Metric,
    NeededReference,
    Options,
    Renderer,
    attach,
    hookimpl,
    log_ratios,
    require_distinct,
    require_group_size,
    require_same_prompt,
    require_trained,
)
from mint_train_ranking.lists import LABEL, pad_lists, ranking_metrics
from mint_train_ranking.rows import FORMS, RankedCompletions


class PlackettLuceOptions(Options):
    """The options of the Plackett-Luce loss, with DPO's names and defaults."""

    beta: float = Field(default=0.1, gt=0, description="Scale of the log-ratios.")
    reference: NeededReference = "initial"


def plackett_luce_nll(scores: torch.Tensor, sizes: torch.Tensor, top_k: int | None = None) -> torch.Tensor:
    """Compute -log P(ranking) under the Plackett-Luce model, `[lists]`.

    P = product over k of exp(s_k) / sum over j >= k of exp(s_j): each rank goes to its completion against
    all that are left (Plackett, 1975; Luce, 1959). As a loss of scores it is ListMLE (Xia et al., 2008).

    Args:
        scores: `[datums]`, best first within each list.
        sizes: completions per list, int64 `[lists]`.
        top_k: count the best k ranks only, or all.
    """
    rows, real = pad_lists(scores, sizes)
    # worst first, a cumulative sum reaches from each rank down to the end of its list
    lowest = torch.finfo(rows.dtype).min
    left = rows.masked_fill(~real, lowest).flip(1).logcumsumexp(1).flip(1)
    counted = real if top_k is None else real & (torch.arange(real.shape[1]) < top_k)
    return torch.where(counted, left - rows, 0.0).sum(1)


@hookimpl
def loss_options() -> type[PlackettLuceOptions]:
    """Return the options of the Plackett-Luce loss."""
    return PlackettLuceOptions


@hookimpl
def bundled_rows() -> Path:
    """Return eight rankings to try the loss on."""
    return Path(__file__).with_name("ranked.jsonl")


@hookimpl
def row_forms() -> Forms:
    """Return every form of ranked completions."""
    return FORMS


@hookimpl
def flatten(example: RankedCompletions, renderer: Renderer) -> list[AttachedDatum]:
    """Flatten a ranking into [best, ..., worst]."""
    datums = renderer.datums(example.prompt, example.completions)
    return [attach(datum, **{LABEL: label}) for datum, label in zip(datums, example.labels, strict=True)]


@hookimpl
def check_batch(batch: Batch) -> None:
    """Require lists of two or more different trained completions of one prompt, best first.

    Raises:
        ContractError: naming the first list that breaks the contract.
    """
    require_group_size(batch, 2, "list", or_more=True)
    require_trained(batch, "list")
    require_same_prompt(batch, "list")
    require_distinct(batch, "list")
    for number, group in enumerate(batch.groups):
        labels = [attached.get(LABEL) for attached in group.attached]
        for better, worse in pairwise(labels):
            if not (isinstance(better, float) and isinstance(worse, float) and better >= worse):
                raise ContractError(
                    f"list {number}: its labels {labels} do not fall from best to worst", number
                )


@hookimpl
def compute_loss(
    batch: Batch, logprobs: Sequence[torch.Tensor], options: PlackettLuceOptions
) -> tuple[torch.Tensor, dict[str, float]]:
    """Compute -log P(ranking) of the scores beta (log pi - log pi_ref), the mean over lists."""
    scores = options.beta * log_ratios(logprobs, batch)
    losses = plackett_luce_nll(scores, batch.group_sizes)
    return batch.mean(losses), ranking_metrics(scores, batch.group_sizes)


@hookimpl
def metrics() -> dict[str, Metric]:
    """Describe how many pairs are in order, and the margin of best over worst."""
    return {
        "pair_accuracy": Metric(".2f", kind="share", better="higher", shown=True),
        "mean_margin": Metric(".6f", "nats", better="higher", shown=True),
        "top1_accuracy": Metric(".2f", kind="share", better="higher"),
    }
