"""Batches whose rows all weigh nothing, named before a run stops at one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from mint_train.errors import Source
from mint_train.groups.order import Order
from mint_train.losses.guard import nothing_to_average

MOST_STEPS = 10_000
"""Steps that are looked at: a run may have any number."""


def weightless_notes(
    what: str, batches: Iterable[Sequence[int]], weightless: Mapping[int, Source]
) -> list[str]:
    """Name the first batch whose groups all weigh nothing, if there is one.

    Args:
        what: takes these batches.
        batches: the indices of the groups of each.
        weightless: by index, where each group of weight 0 comes from.
    """
    for batch in batches if weightless else ():
        if all(index in weightless for index in batch):
            found = nothing_to_average([weightless[index] for index in batch])
            return [f"{what} would stop this run: {found}"]
    return []


def training_batches(order: Order, steps: int, batch_size: int) -> Iterator[Sequence[int]]:
    """Yield the batches of a run's first steps."""
    for step in range(1, min(steps, MOST_STEPS) + 1):
        yield from parts(order.step(step), batch_size)


def parts(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yield indices a few at a time."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
