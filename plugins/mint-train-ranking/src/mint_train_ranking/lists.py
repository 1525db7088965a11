"""Lists of different lengths as one matrix, and metrics of ranked scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mint_train.plugin import Batch, mean_logprobs, reference_sequence_logprobs

LABEL = "label"
"""What `flatten` attaches to each datum: how good its completion is, from 1.0 (the best) to 0.0."""


def mean_log_ratios(batch: Batch, logprobs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Average the token logprobs per datum, minus the reference's where there is one, nats, `[datums]`."""
    scores = mean_logprobs(logprobs, batch)
    if batch.reference_logprobs is None:
        return scores
    reference = reference_sequence_logprobs(batch) / batch.trained_tokens
    return scores - reference.to(scores.dtype)


def pad_lists(values: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay packed lists out as rows.

    Args:
        values: `[datums]`, list after list.
        sizes: int64 `[lists]`, adding up to `datums`.

    Returns:
        The values, `[lists, longest]`, 0.0 behind each list's end, and which of them are real, bool.
    """
    real = torch.arange(int(sizes.max())) < sizes[:, None]
    return values.new_zeros(real.shape).masked_scatter(real, values), real


def ranking_metrics(scores: torch.Tensor, sizes: torch.Tensor) -> dict[str, float]:
    """Summarise ranked scores, in their unit.

    `top1_accuracy` is the share of lists whose best completion scores highest, `pair_accuracy` the share of
    ordered pairs that are scored in order, averaged over lists, and `mean_margin` the best's score less the
    worst's.

    Args:
        scores: `[datums]`, best first within each list.
        sizes: int64 `[lists]`.
    """
    with torch.no_grad():
        rows, real = pad_lists(scores, sizes)
        ordered = ordered_pairs(real)
        right = (rows[:, :, None] > rows[:, None, :]) & ordered
        beaten = rows[:, :1] > rows.masked_fill(~real, -torch.inf)[:, 1:]
        worst = rows.gather(1, sizes[:, None] - 1)
        return {
            "top1_accuracy": float(beaten.all(dim=1).float().mean()),
            "pair_accuracy": float((right.sum((1, 2)) / ordered.sum((1, 2))).mean()),
            "mean_margin": float((rows[:, :1] - worst).mean()),
        }


def ordered_pairs(real: torch.Tensor) -> torch.Tensor:
    """Mark the pairs (i, j) of completions with i ranked above j, bool `[lists, longest, longest]`."""
    return (real[:, :, None] & real[:, None, :]).triu(diagonal=1)
