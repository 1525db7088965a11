"""Which reference logprobs are computed together, and which step is the first to need them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np

from mint_train.groups.order import Order, epoch_order
from mint_train.groups.step_count import steps_per_epoch

BLOCK = 8
"""Groups whose logprobs are computed together and are one file.

The last bits of a logprob may depend on what shares its forward, so a block follows from the data alone:
other seeds and batch sizes, and runs that were interrupted, have the same logprobs. A step of eight groups
needs at most eight blocks.
"""


def blocks_of(indices: Iterable[int]) -> list[int]:
    """Return the blocks that groups are in, each once, in the order of the groups."""
    return list(dict.fromkeys(index // BLOCK for index in indices))


def groups_of(block: int, groups: int) -> range:
    """Return the indices of a block's groups; `groups` is how many there are in all."""
    return range(groups)[block * BLOCK : (block + 1) * BLOCK]


def first_uses(order: Order, steps: int) -> dict[int, int]:
    """Return the first step that needs each block, in the order of these steps; without blocks of no step."""
    found: dict[int, int] = {}
    size, per_epoch = order.batch_size, steps_per_epoch(order.groups, order.batch_size)
    for before in range(0, steps, per_epoch):
        listed = epoch_order(order, before // per_epoch)[: (steps - before) * size]
        groups = np.array(array("q", listed))  # numpy takes three times as long to read a list
        taken = np.arange(len(groups)) // size
        # in a step they stand in the data's order
        groups = np.sort(taken * order.groups + groups) % order.groups
        blocks = groups // BLOCK
        begins = np.full(-(-order.groups // BLOCK), len(groups))
        begins[blocks[::-1]] = np.arange(len(groups))[::-1]  # of equal indices numpy keeps the last
        begins = np.sort(begins[begins < len(groups)])
        for block, step in zip(blocks[begins].tolist(), taken[begins].tolist(), strict=True):
            found.setdefault(block, before + 1 + step)
        if len(found) * BLOCK >= order.groups:
            break
    return found
