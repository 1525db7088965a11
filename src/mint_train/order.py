"""Which groups make up which step: a function of seed and step, so that a resume needs no state."""

from __future__ import annotations

import random
from functools import lru_cache


def steps_per_epoch(groups: int, batch_size: int) -> int:
    """Count the steps of one pass; the last one may be smaller, and nothing is dropped."""
    return -(-groups // batch_size)


def step_indices(step: int, groups: int, batch_size: int, seed: int) -> list[int]:
    """Return the groups of a step (counted from 1), in the data's order within the step.

    Each epoch deals all groups out once, shuffled by the seed and the epoch.
    """
    epoch, place = divmod(step - 1, steps_per_epoch(groups, batch_size))
    order = epoch_order(groups, seed, epoch)
    return sorted(order[place * batch_size : (place + 1) * batch_size])


@lru_cache(maxsize=2)
def epoch_order(groups: int, seed: int, epoch: int) -> list[int]:
    """Shuffle the groups of one epoch."""
    order = list(range(groups))
    random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311 - an order, not a secret
    return order
