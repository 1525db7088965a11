"""Which reference logprobs are computed together, and which step is the first to need them."""

from __future__ import annotations

from collections.abc import Iterable

from mint_train.groups.order import Order

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
    for step in range(1, steps + 1):
        for block in blocks_of(order.step(step)):
            found.setdefault(block, step)
        if len(found) * BLOCK >= order.groups:
            break
    return found
