"""Allocate tensors that are soon freed so that their memory is used again.

torch asks the C library for aligned blocks. To align one, glibc (2.36) looks for a block that is a little
larger, so it never uses a freed tensor's memory again for one of the same size. During a forward, most of
whose tensors are kept for the backward, each freed one would leave a hole. So a tensor that is soon freed
gets a few numbers more than it needs: its memory then fits one that is kept, or the next that is soon freed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle

import torch

SPARE = 64
"""Numbers by which two sizes differ. Even in 16 bits, aligning a block and its header cost no more."""
SIZES = cycle(range(17, 1, -1))
"""How often `SPARE` is added: each time less, so that a tensor fits what those before it have left."""


def empty_temporary(like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Allocate a tensor that is soon freed: contiguous, in the dtype and on the device of another one."""
    return _empty(like, shape, next(SIZES))


def empty_output(like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Allocate a layer's output, which may be kept or soon freed: a little less than for a temporary one."""
    return _empty(like, shape, 1)


def _empty(like: torch.Tensor, shape: Sequence[int], spares: int) -> torch.Tensor:
    return like.new_empty(math.prod(shape) + spares * SPARE).resize_(tuple(shape))
