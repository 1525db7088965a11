"""Kahneman-Tversky Optimization: completions with a thumb up or down, unpaired (Ethayarajh et al., 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from mint_train import Batch, attach, hookimpl, log_ratios
from mint_train.batches.datums import AttachedDatum
from mint_train.rendering.renderer import Renderer
from mint_train.rows.forms import recognise
from mint_train_kto.contract import LABEL, check_rated
from mint_train_kto.loss import kahneman_tversky, kl_baseline, rating_metrics
from mint_train_kto.rows import FORMS, RatedCompletion, parse_rated, with_unrelated

MUCH_MORE = 3.0
UNTRAINED_DATUMS = (1,)
"""The baseline's completion is measured and not trained: no gradient passes through z_0."""


class KTOOptions(BaseModel):
    """The options of KTO, with the paper's names and defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    beta: float = Field(
        default=0.1, gt=0, allow_inf_nan=False, description="How fast the value of a log-ratio saturates."
    )
    desirable_weight: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="lambda_D, the weight of desirable completions."
    )
    undesirable_weight: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="lambda_U, the weight of undesirable completions."
    )
    baseline: Literal["unrelated", "batch", "none"] = Field(
        default="unrelated",
        description="z_0: from unrelated completions (the paper's), from the rated ones (cheaper), or 0.",
    )
    reference: str = Field(
        default="initial", min_length=1, description="The reference: initial, a model or a checkpoint."
    )

    @field_validator("reference")
    @classmethod
    def refuse_none(cls, reference: str) -> str:
        """Refuse to leave the reference out, which log-ratios are taken against."""
        if reference == "none":
            raise PydanticCustomError(
                "reference_needed", "this loss needs a reference; give initial or a model"
            )
        return reference


def holds_baseline(options: KTOOptions) -> bool:
    """Tell whether z_0, which is held constant, depends on logprobs that are trained."""
    return options.baseline == "batch"


STOPS_GRADIENT = holds_baseline


@hookimpl
def loss_options() -> type[BaseModel]:
    """Options of the loss."""
    return KTOOptions


@hookimpl
def bundled_rows() -> Path:
    """Ten rated completions to try the loss on."""
    return Path(__file__).with_name("rated.jsonl")


@hookimpl
def parse_row(row: Mapping[str, Any]) -> RatedCompletion:
    """Read a rated completion in any of the forms of `rows.py`."""
    return parse_rated(row)


@hookimpl
def row_form(row: Mapping[str, Any]) -> str:
    """Name the form of a rated completion."""
    return recognise(row, FORMS).name


@hookimpl
def relate_examples(
    examples: Iterable[RatedCompletion], options: KTOOptions
) -> Iterator[RatedCompletion] | None:
    """Give each example a completion of another prompt, where the baseline is measured on it."""
    return with_unrelated(examples) if options.baseline == "unrelated" else None


@hookimpl
def flatten(example: RatedCompletion, renderer: Renderer) -> Sequence[AttachedDatum]:
    """Flatten into [completion] or [completion, unrelated completion], both on the example's prompt."""
    texts = [text for text in (example.completion, example.unrelated) if text is not None]
    datums = renderer.datums(example.prompt, texts, ("the completion", "its unrelated completion"))
    return [attach(datum, **{LABEL: float(example.desirable)}) for datum in datums]


@hookimpl
def check_batch(batch: Batch, options: KTOOptions) -> None:
    """Enforce one rated completion a group, and its baseline's where the options ask for it."""
    check_rated(batch, with_baseline=options.baseline == "unrelated")


@hookimpl
def compute_loss(
    batch: Batch, logprobs: Sequence[torch.Tensor], options: KTOOptions
) -> tuple[torch.Tensor, dict[str, float]]:
    """lambda_y - v(x, y), the mean over the batch (eq. 8), with the baseline that the options name.

    - `unrelated`: z_0 = max(0, mean log-ratio of the unrelated completions), as in the paper. The paper takes
      the completion of the batch's next example; here it is that of the data's next example with another
      prompt, so that it does not depend on the batch and its reference logprobs are computed once.
    - `batch`: z_0 = max(0, mean log-ratio of the rated completions themselves). It costs half the tokens, and
      is biased: as training raises desirable completions, their own log-ratios move z_0 along.
    - `none`: z_0 = 0.
    """
    ratios = log_ratios(logprobs, batch)
    desirable = batch.attached(LABEL) == 1
    measured = torch.zeros((), dtype=ratios.dtype)
    if options.baseline == "unrelated":
        # the SDK wants a gradient for each datum, and that of the unrelated ones is zero
        measured = 0.0 * ratios[1::2].sum()
        baseline = kl_baseline(ratios[1::2])
        ratios, desirable = ratios[::2], desirable[::2]
    elif options.baseline == "batch":
        baseline = kl_baseline(ratios)
    else:
        baseline = measured
    loss = kahneman_tversky(
        ratios, baseline, desirable, options.beta, options.desirable_weight, options.undesirable_weight
    )
    return loss + measured, rating_metrics(ratios, baseline, desirable, options.beta)


@hookimpl
def reference(options: KTOOptions) -> str:
    """Name the model that the log-ratios are taken against."""
    return options.reference


@hookimpl
def step_line() -> dict[str, str]:
    """How many completions are on their side, and how far the policy has moved."""
    return {"accuracy": ".2f", "kl": ".6f"}


@hookimpl
def remark(batch: Batch, options: KTOOptions) -> str | None:
    """Say where one label outweighs the other, which the two weights are there to balance."""
    labels = batch.attached(LABEL)[:: 2 if options.baseline == "unrelated" else 1]
    up, down = float(labels.sum()), float((1 - labels).sum())
    weighted = sorted((options.desirable_weight * up, options.undesirable_weight * down))
    if weighted[1] <= MUCH_MORE * weighted[0]:
        return None
    return (
        f"The first batch has {up:.0f} desirable and {down:.0f} undesirable completions; balance them with "
        "--set desirable_weight=... and --set undesirable_weight=... if all the data are so."
    )
