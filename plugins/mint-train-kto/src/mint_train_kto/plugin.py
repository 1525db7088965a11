"""Kahneman-Tversky Optimization: completions with a thumb up or down, unpaired (Ethayarajh et al., 2024).

In the formula r is the log-ratio of policy and reference, z_0 the baseline, lambda_y the label's weight.

Formula: lambda_y (1 - sigma(beta (r - z_0))) for a desirable completion, lambda_y (1 - sigma(beta (z_0 - r)))
    for an undesirable one; z_0 = max(0, mean r of unrelated completions), without gradient
Paper: Ethayarajh et al., 2024, arXiv 2402.01306, eq. 8
Defaults: the authors' kto.yaml
Use: labels are thumbs up and down on single completions
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

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
from mint_train_kto.kahneman_tversky import kahneman_tversky, kl_baseline, rating_metrics
from mint_train_kto.rows import FORMS, RatedCompletion, with_unrelated

LABEL = "label"
NAMES = ("completion", "unrelated completion")
MUCH_MORE = 3.0
UNTRAINED_DATUMS = (1,)
"""The baseline's completion is measured and not trained: no gradient passes through z_0."""


class KTOOptions(Options):
    """The options of KTO, with the paper's names and defaults."""

    beta: float = Field(default=0.1, gt=0, description="How fast the value of a log-ratio saturates.")
    desirable_weight: float = Field(
        default=1.0, ge=0, description="lambda_D, the weight of desirable completions."
    )
    undesirable_weight: float = Field(
        default=1.0, ge=0, description="lambda_U, the weight of undesirable completions."
    )
    baseline: Literal["unrelated", "batch", "none"] = Field(
        default="unrelated",
        description="z_0: from unrelated completions (the paper's), from the rated ones (cheaper), or 0.",
    )
    reference: NeededReference = "initial"


def holds_baseline(options: KTOOptions) -> bool:
    """Return whether z_0, which is held constant, depends on logprobs that are trained."""
    return options.baseline == "batch"


STOPS_GRADIENT = holds_baseline


@hookimpl
def loss_options() -> type[KTOOptions]:
    """Return the options of KTO."""
    return KTOOptions


@hookimpl
def bundled_rows() -> Path:
    """Return ten rated completions to try the loss on."""
    return Path(__file__).with_name("rated.jsonl")


@hookimpl
def row_forms() -> Forms:
    """Return every form of a rated completion."""
    return FORMS


@hookimpl
def datum_names(options: KTOOptions) -> tuple[str, ...]:
    """Name the completion, and the one of another prompt that the baseline is measured on."""
    return NAMES if options.baseline == "unrelated" else NAMES[:1]


@hookimpl
def link_examples(
    examples: Iterable[RatedCompletion], options: KTOOptions
) -> Iterator[RatedCompletion] | None:
    """Give each example a completion of another prompt, where the baseline is measured on it."""
    return with_unrelated(examples) if options.baseline == "unrelated" else None


@hookimpl
def flatten(example: RatedCompletion, renderer: Renderer) -> Sequence[AttachedDatum]:
    """Flatten into [completion] or [completion, unrelated completion], both on the example's prompt."""
    texts = [text for text in (example.completion, example.unrelated) if text is not None]
    datums = renderer.datums(example.prompt, texts, NAMES)
    return [attach(datum, **{LABEL: float(example.desirable)}) for datum in datums]


@hookimpl
def check_batch(batch: Batch, options: KTOOptions) -> None:
    """Require one labelled completion a group, and its baseline's where the options ask for it.

    Raises:
        ContractError: naming the first group that breaks the contract.
    """
    names = datum_names(options)
    require_group_size(batch, len(names), "example", names)
    require_trained(batch, "example", names)
    require_same_prompt(batch, "example", names)
    require_distinct(batch, "example", names)
    for number, group in enumerate(batch.groups):
        if not group.attached or group.attached[0].get(LABEL) not in (0.0, 1.0):
            raise ContractError(f"example {number} has no label of 1.0 (desirable) or 0.0", number)


@hookimpl
def compute_loss(
    batch: Batch, logprobs: Sequence[torch.Tensor], options: KTOOptions
) -> tuple[torch.Tensor, dict[str, float]]:
    """Compute lambda_y - v(x, y), the mean over the batch (eq. 8), with the baseline that the options name.

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
        baseline = kl_baseline(batch, ratios[1::2])
        ratios, desirable = ratios[::2], desirable[::2]
    elif options.baseline == "batch":
        baseline = kl_baseline(batch, ratios)
    else:
        baseline = measured
    losses = kahneman_tversky(
        ratios, baseline, desirable, options.beta, options.desirable_weight, options.undesirable_weight
    )
    return batch.mean(losses) + measured, rating_metrics(ratios, baseline, desirable, options.beta)


@hookimpl
def metrics() -> dict[str, Metric]:
    """Describe how many completions are on their side, and how far the policy has moved."""
    return {
        "accuracy": Metric(".2f", kind="share", better="higher", shown=True),
        "kl": Metric(".6f", "nats", kind="batch", shown=True),
        "rewards/desirable": Metric(".6f", "nats", better="higher"),
        "rewards/undesirable": Metric(".6f", "nats", better="lower"),
    }


@hookimpl
def data_note(batch: Batch, options: KTOOptions) -> str | None:
    """Say where one label outweighs the other, which the two weights are there to balance."""
    labels = batch.attached(LABEL)[:: 2 if options.baseline == "unrelated" else 1]
    up, down = float(labels.sum()), float((1 - labels).sum())
    if not up or not down:
        only = "desirable" if up else "undesirable"
        return (
            f"The first batch has {only} completions only. If all the data are so, no weight can balance "
            "them: the loss needs both labels."
        )
    weighted = sorted((options.desirable_weight * up, options.undesirable_weight * down))
    if weighted[1] <= MUCH_MORE * weighted[0]:
        return None
    return (
        f"The first batch has {up:.0f} desirable and {down:.0f} undesirable completions. If all the data are "
        "so, balance them with the options desirable_weight and undesirable_weight."
    )
