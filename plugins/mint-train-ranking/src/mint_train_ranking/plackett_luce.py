"""DPO for rankings: the Plackett-Luce likelihood of completions, best first (Rafailov et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from mint_train import Batch, attach, hookimpl, log_ratios
from mint_train.batches.datums import AttachedDatum
from mint_train.rendering.renderer import Renderer
from mint_train.rows.forms import recognise
from mint_train_ranking.contract import LABEL, check_rankings
from mint_train_ranking.lists import pad_lists, ranking_metrics
from mint_train_ranking.rows import FORMS, RankedCompletions, parse_ranked


class PlackettLuceOptions(BaseModel):
    """The options of the Plackett-Luce loss, with DPO's names and defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    beta: float = Field(default=0.1, gt=0, allow_inf_nan=False, description="Scale of the log-ratios.")
    reference: str = Field(
        default="initial", min_length=1, description="The reference: initial, a model or a checkpoint."
    )

    @field_validator("reference")
    @classmethod
    def refuse_none(cls, reference: str) -> str:
        """Refuse to leave the reference out, which log-ratios are taken against."""
        if reference == "none":
            problem = "this loss needs a reference; give initial or a model (listmle goes without)"
            raise PydanticCustomError("reference_needed", problem)
        return reference


def plackett_luce_nll(scores: torch.Tensor, sizes: torch.Tensor, top_k: int | None = None) -> torch.Tensor:
    """Compute -log P(ranking) under the Plackett-Luce model, the mean over lists.

    P = product over k of exp(s_k) / sum over j >= k of exp(s_j): each place goes to its completion against
    all that are left (Plackett, 1975; Luce, 1959). As a loss of scores it is ListMLE (Xia et al., 2008).

    Args:
        scores: `[datums]`, best first within each list.
        sizes: completions per list, int64 `[lists]`.
        top_k: count the best k places only, or all.
    """
    rows, real = pad_lists(scores, sizes)
    # worst first, a cumulative sum reaches from each place down to the end of its list
    lowest = torch.finfo(rows.dtype).min
    left = rows.masked_fill(~real, lowest).flip(1).logcumsumexp(1).flip(1)
    counted = real if top_k is None else real & (torch.arange(real.shape[1]) < top_k)
    return torch.where(counted, left - rows, 0.0).sum(1).mean()


@hookimpl
def loss_options() -> type[BaseModel]:
    """Options of the loss."""
    return PlackettLuceOptions


@hookimpl
def bundled_rows() -> Path:
    """Eight rankings to try the loss on."""
    return Path(__file__).with_name("ranked.jsonl")


@hookimpl
def parse_row(row: Mapping[str, Any]) -> RankedCompletions:
    """Read a prompt with its completions, best first or with scores."""
    return parse_ranked(row)


@hookimpl
def row_form(row: Mapping[str, Any]) -> str:
    """Name the form of a ranking."""
    return recognise(row, FORMS).name


@hookimpl
def flatten(example: RankedCompletions, renderer: Renderer) -> list[AttachedDatum]:
    """Flatten a ranking into [best, ..., worst]."""
    datums = renderer.datums(example.prompt, example.completions)
    return [attach(datum, **{LABEL: label}) for datum, label in zip(datums, example.labels, strict=True)]


@hookimpl
def check_batch(batch: Batch) -> None:
    """Enforce two or more different completions of one prompt, best first."""
    check_rankings(batch)


@hookimpl
def compute_loss(
    batch: Batch, logprobs: Sequence[torch.Tensor], options: PlackettLuceOptions
) -> tuple[torch.Tensor, dict[str, float]]:
    """-log P(ranking) of the scores beta (log pi - log pi_ref), the mean over lists.

    Rafailov et al. (2023, arXiv 2305.18290), appendix A.3. Lists of two make it DPO.
    """
    scores = options.beta * log_ratios(logprobs, batch)
    return plackett_luce_nll(scores, batch.group_sizes), ranking_metrics(scores, batch.group_sizes)


@hookimpl
def reference(options: PlackettLuceOptions) -> str | None:
    """Name the model that the log-ratios are taken against; a loss that extends this one may have "none"."""
    return None if options.reference == "none" else options.reference


@hookimpl
def step_line() -> dict[str, str]:
    """Show how many pairs are in order, and the margin of best over worst."""
    return {"pair_accuracy": ".2f", "mean_margin": ".6f"}
