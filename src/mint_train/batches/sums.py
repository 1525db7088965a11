"""Sums over the tokens of packed sequences, in float64: in float32 they drift by nats on long sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

TOKENS_AT_ONCE = 65_536
"""Tokens that are converted together: half a megabyte, which stays in the processor's cache."""


def segment_sums(
    values: torch.Tensor, lengths: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum packed values per segment, each product and sum in float64.

    Args:
        values: floating `[tokens]`.
        lengths: int64 `[segments]`, adding up to `tokens`.
        weights: floating `[tokens]`, what each value counts; without it, 1.

    Returns:
        float64 `[segments]`, differentiable once by `values`.
    """
    if weights is not None and weights.requires_grad:
        values, weights = values.double() * weights, None
    sums: torch.Tensor = SegmentSums.apply(values, lengths, weights)  # type: ignore[no-untyped-call]
    return sums


class SegmentSums(torch.autograd.Function):
    """Sums per segment; the gradient of each value is its segment's, times its weight."""

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, lengths: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Sum the values, `[tokens]`, to `[segments]`."""
        ctx.dtype, ctx.lengths, ctx.weights = values.dtype, lengths, weights
        arrays = values.detach().numpy(), None if weights is None else weights.numpy()
        return torch.from_numpy(array_sums(*arrays, lengths.numpy()))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Hand each value its segment's gradient."""
        repeated = torch.from_numpy(np.repeat(gradients[0].to(ctx.dtype).numpy(), ctx.lengths.numpy()))
        return repeated if ctx.weights is None else repeated.mul_(ctx.weights), None, None


def array_sums(values: np.ndarray, weights: np.ndarray | None, lengths: np.ndarray) -> np.ndarray:
    """Sum arrays per segment, some tokens at a time: float64 `[segments]`."""
    sums = np.zeros(len(lengths))
    present = np.flatnonzero(lengths)  # reduceat would give an empty segment the value behind it
    ends = lengths[present].cumsum()
    starts = ends - lengths[present]
    first = 0
    while first < len(present):
        last = max(first + 1, int(ends.searchsorted(starts[first] + TOKENS_AT_ONCE, "right")))
        tokens = slice(starts[first], ends[last - 1])
        block = values[tokens].astype(np.float64)
        if weights is not None:
            block *= weights[tokens]
        sums[present[first:last]] = np.add.reduceat(block, starts[first:last] - starts[first])
        first = last
    return sums
