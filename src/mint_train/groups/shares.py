"""What weights of sources mean: an epoch has as many groups as all sources, each source its weight's share.

A source is dealt in passes, each a shuffle of its own groups: one that is smaller than its share comes round
again within an epoch, one that is larger goes on in the next epoch where it stopped. So no group comes a
second time before all others of its source have come once, and an epoch follows from seed and number alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mint_train.errors import OptionError, counted
from mint_train.rows.mixture import Data


@dataclass(frozen=True)
class Share:
    """One source's part of each epoch."""

    name: str
    weight: float
    groups: range
    """The source's groups, by index."""
    per_epoch: int
    """Groups of it in an epoch."""

    def drawn(self, seed: int, epoch: int) -> list[int]:
        """Return the groups of an epoch, counted from 0, in the order of the passes."""
        start = epoch * self.per_epoch
        end, size = start + self.per_epoch, len(self.groups)
        found: list[int] = []
        for number in range(start // size, -(-end // size)):
            found += self.one_pass(seed, number)[max(start - number * size, 0) : end - number * size]
        return found

    def one_pass(self, seed: int, number: int) -> list[int]:
        """Return all groups in the order of a pass, counted from 0."""
        order = list(self.groups)
        random.Random(f"{seed}/{self.groups.start}/{number}").shuffle(order)  # noqa: S311 - an order
        return order

    def describe(self) -> str:
        """Say in one line what becomes of the source."""
        passes = self.per_epoch / len(self.groups)
        return (
            f"{self.name}: {counted(self.per_epoch, 'group')} an epoch (weight {self.weight:g}), of "
            f"{len(self.groups):,} that it has: {passes:.2g} passes."
        )


def shares_of(data: Data, groups_by_path: Mapping[str, int]) -> tuple[Share, ...]:
    """Return each source's share of an epoch; none where the sources have no weights.

    Args:
        data: the sources.
        groups_by_path: groups made of the rows of each file, the sources' order kept.

    Raises:
        OptionError: a source has no group left, or too small a weight for one.
    """
    if len(data.parts) == 1 or data.parts[0].weight is None:
        return ()
    counts = [sum(groups_by_path.get(path, 0) for path in part.paths()) for part in data.parts]
    quotas = largest_remainders([part.weight or 0.0 for part in data.parts], sum(counts))
    shares: list[Share] = []
    start = 0
    for part, count, quota in zip(data.parts, counts, quotas, strict=True):
        if not count:
            raise OptionError(f"--data {part.name}: nothing of it is left to train")
        if not quota:
            raise OptionError(
                f"--data {part.name}:{part.weight:g}: its weight gives it none of {sum(counts)} groups an "
                "epoch; raise the weight, or leave the source out"
            )
        shares.append(Share(part.name, part.weight or 0.0, range(start, start + count), quota))
        start += count
    return tuple(shares)


def largest_remainders(weights: Sequence[float], total: int) -> list[int]:
    """Share a number out by weights, in whole numbers that add up to it (Hamilton's method)."""
    exact = [total * weight / sum(weights) for weight in weights]
    whole = [int(one) for one in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: whole[index] - exact[index])
    for index in by_remainder[: total - sum(whole)]:
        whole[index] += 1
    return whole


def epoch_of_shares(shares: Sequence[Share], seed: int, epoch: int) -> list[int]:
    """Return the groups of all sources in an epoch, source by source."""
    return [index for share in shares for index in share.drawn(seed, epoch)]
