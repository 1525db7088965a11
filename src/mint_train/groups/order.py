"""Which groups make up which step: a function of seed and step, so that a resume needs no state."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mint_train.groups.shares import Share, epoch_of_shares
from mint_train.groups.step_count import groups_per_step, steps_per_epoch
from mint_train.settings.model import Settings

MOST_STEPS_SORTED = 50
"""Steps whose groups are sorted by length together, as transformers has it."""


@dataclass(frozen=True, eq=False)
class Order:
    """How the groups are dealt out: shuffled by the seed and the epoch, in each epoch all of them once."""

    groups: int
    batch_size: int
    seed: int
    lengths: Sequence[int] | None = None
    """Of each group; given, a step's groups are of similar length."""
    shares: Sequence[Share] = ()
    """What weights leave of each source in an epoch; without them each group comes once."""

    @classmethod
    def of(cls, settings: Settings, groups: int, lengths: Sequence[int], shares: Sequence[Share]) -> Order:
        """Return the order of a run's groups, whose longest datums have these lengths."""
        similar = lengths if settings.group_by_length else None
        return cls(groups, groups_per_step(settings), settings.seed, similar, shares)

    def step(self, step: int) -> list[int]:
        """Return the groups of a step (counted from 1), in the data's order within the step."""
        epoch, position = divmod(step - 1, steps_per_epoch(self.groups, self.batch_size))
        order = epoch_order(self, epoch)
        return sorted(order[position * self.batch_size : (position + 1) * self.batch_size])


@lru_cache(maxsize=2)
def epoch_order(order: Order, epoch: int) -> list[int]:
    """Shuffle the groups of one epoch."""
    drawn = random.Random(f"{order.seed}/{epoch}")  # noqa: S311 - an order, not a secret
    shuffled = epoch_of_shares(order.shares, order.seed, epoch) or list(range(order.groups))
    drawn.shuffle(shuffled)
    return shuffled if order.lengths is None else group_by_length(shuffled, order, order.lengths, drawn)


def group_by_length(
    shuffled: list[int], order: Order, lengths: Sequence[int], drawn: random.Random
) -> list[int]:
    """Sort shuffled groups by length within a few steps' worth of them, then shuffle the whole steps.

    At least four such parts are made where there are enough groups, so that epochs differ in their steps.
    """
    together = max(1, min(order.groups // (4 * order.batch_size), MOST_STEPS_SORTED)) * order.batch_size
    unsorted = np.array(array("q", shuffled))  # numpy takes three times as long to read a list
    negative = -np.array(lengths)[unsorted]  # a stable sort keeps equal lengths in the order of the shuffle
    parts = [slice(start, start + together) for start in range(0, order.groups, together)]
    sorted_parts = [unsorted[part][np.argsort(negative[part], kind="stable")] for part in parts]
    by_length = np.concatenate(sorted_parts)
    whole = order.groups // order.batch_size
    steps = list(range(whole))
    drawn.shuffle(steps)
    in_steps = by_length[: whole * order.batch_size].reshape(whole, order.batch_size)
    listed: list[int] = [*in_steps[steps].ravel().tolist(), *by_length[in_steps.size :].tolist()]
    return listed
