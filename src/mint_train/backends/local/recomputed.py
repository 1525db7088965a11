"""Results that the backward computes again from what is kept anyway, instead of keeping them too.

A function whose result is cheap says on that result what it is computed from. A function that needs the
result for its backward saves that instead. This holds for views of a result too: autograd knows their base.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import torch

Compute: TypeAlias = Callable[..., torch.Tensor]

Kept: TypeAlias = tuple[Compute, tuple[torch.Tensor, ...]]
"""What computes a tensor from others, and these others, which are to be saved for the backward."""


class _Source(NamedTuple):
    compute: Compute
    inputs: tuple[torch.Tensor, ...]
    version: int


def set_source(result: torch.Tensor, compute: Compute, *inputs: torch.Tensor) -> None:
    """Note that a contiguous `result`, which is not a view, can be computed again as ``compute(*inputs)``."""
    cast(Any, result).computed_from = _Source(compute, inputs, result._version)


def has_source(tensor: torch.Tensor) -> bool:
    """Return whether a tensor, or the one that it is a view of, says what it is computed from."""
    return _source(tensor) is not None


def kept_for(tensor: torch.Tensor) -> Kept:
    """Return how to have a tensor in the backward: computed again, if it says from what, or saved itself."""
    source = _source(tensor)
    if source is None:
        return _same, (tensor,)
    layout = tensor.shape, tensor.stride(), tensor.storage_offset()
    compute_base = source.compute  # not the source: it would keep the inputs alive after the backward

    def compute(*inputs: torch.Tensor) -> torch.Tensor:
        return compute_base(*inputs).as_strided(*layout)

    return compute, source.inputs


def _source(tensor: torch.Tensor) -> _Source | None:
    """Return the source of a tensor or of its base, unless it was changed in the meantime."""
    base = tensor if tensor._base is None else tensor._base
    source: _Source | None = getattr(base, "computed_from", None)
    return source if source is not None and source.version == base._version else None


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
