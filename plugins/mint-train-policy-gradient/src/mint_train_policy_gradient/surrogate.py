"""The importance-weighted policy gradient on packed tokens, clipped where asked."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from mint_train.plugin import Batch, segment_sums

MAX_LOG_RATIO = 20.0
"""exp(20) is 5e8, and float32 overflows at exp(88)."""

Average: TypeAlias = Literal["tokens", "sequences", "none"]


def log_ratios(logprobs: torch.Tensor, old_logprobs: torch.Tensor) -> torch.Tensor:
    """Compute log pi(token) - log pi_old(token), nats, `[tokens]`, at most 20; no gradient above."""
    return (logprobs - old_logprobs).clamp(max=MAX_LOG_RATIO)


def surrogate(
    ratios: torch.Tensor, advantages: torch.Tensor, clip: float | None, clip_high: float | None
) -> torch.Tensor:
    """Compute what a token contributes to the objective, `[tokens]`.

    Without `clip` it is r A (Schulman et al., 2017, arXiv 1707.06347, eq. 6), with it
    min(r A, clip(r, 1 - clip, 1 + clip_high) A) (eq. 7).

    Args:
        ratios: r, `[tokens]`.
        advantages: A, `[tokens]`.
        clip: how far below 1 a ratio counts, and above 1 too where `clip_high` is None.
        clip_high: how far above 1 a ratio counts.
    """
    if clip is None:
        return ratios * advantages
    clipped = ratios.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return torch.minimum(ratios * advantages, clipped * advantages)


def average_tokens(values: torch.Tensor, batch: Batch, average: Average) -> torch.Tensor:
    """Average packed token values over a batch, to a scalar.

    Args:
        values: `[tokens]`.
        batch: the batch, whose weights count.
        average: `tokens` over all trained tokens, `sequences` over each datum's and then over the datums,
            `none` a sum over each datum's and then the mean over the datums.
    """
    sums = segment_sums(values, batch.lengths, batch.weights)
    if average == "tokens":
        return batch.mean(sums, batch.trained_tokens)
    if average == "sequences":
        sums = sums / batch.trained_tokens
    return batch.mean(sums)
