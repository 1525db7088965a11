"""Sums over the tokens of packed sequences."""

from __future__ import annotations

import torch


def segment_sums(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Sum packed values per segment.

    Args:
        values: floating `[tokens]`.
        lengths: int64 `[segments]`, adding up to `tokens`.

    Returns:
        `[segments]`, of the dtype of `values`.
    """
    return torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)
