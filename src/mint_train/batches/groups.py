"""Groups: the datums of one example, and the groups of a run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import overload

import numpy as np
import torch

from mint_train.batches.datums import AttachedDatum, Attachment, DatumArrays
from mint_train.batches.sums import segment_sums
from mint_train.errors import PluginError, Source
from mint_train.sdk import Datum

READ_AT_ONCE = 256
"""Groups that are read at once when all are read."""


@dataclass(frozen=True)
class Group:
    """The datums of one example, in the order that its loss's `flatten` gave them."""

    datums: tuple[Datum, ...]
    source: Source
    attached: tuple[Mapping[str, Attachment], ...] = ()
    reference_logprobs: tuple[torch.Tensor, ...] | None = None
    known_arrays: tuple[DatumArrays, ...] | None = field(default=None, repr=False, compare=False)
    """The arrays the datums were built from, if known; avoids re-reading long lists."""
    weight: float = 1.0
    """What the group counts in its batch's mean: its row's field `weight`."""

    @classmethod
    def of(cls, flattened: Sequence[Datum | AttachedDatum], source: Source, weight: float = 1.0) -> Group:
        """Make a group of what a `flatten` hook returned, and of its row's weight.

        Raises:
            PluginError: it returned something else, or a datum that holds something else.
        """
        datums = [item.datum if isinstance(item, AttachedDatum) else item for item in flattened]
        advice = "build it with the renderer, or with mint_train.plugin.build_datum"
        for datum in datums:
            if not isinstance(datum, Datum):
                kind = type(datum).__name__
                raise PluginError(f"{source}: flatten returned a {kind} where a Datum is needed; {advice}")
        attached = [item.attached if isinstance(item, AttachedDatum) else {} for item in flattened]
        group = cls(datums=tuple(datums), source=source, attached=tuple(attached), weight=weight)
        if not group.holds_lists():
            problem = "a datum that is not made of input tokens, target_tokens and weights, a list of each"
            raise PluginError(f"{source}: flatten returned {problem}; {advice}")
        return group

    def holds_lists(self) -> bool:
        """Return whether each datum holds its lists, which the SDK's class leaves open."""
        try:
            return all(part.ndim == 1 for arrays in self.arrays for part in arrays[:3])
        except Exception:
            return False

    @cached_property
    def arrays(self) -> tuple[DatumArrays, ...]:
        """Per datum, its inputs, targets and weights."""
        return self.known_arrays or tuple(DatumArrays.of(datum) for datum in self.datums)

    @property
    def weights(self) -> tuple[np.ndarray, ...]:
        """Per datum, its weights, float32 `[target tokens]`."""
        return tuple([arrays.weights for arrays in self.arrays])

    @property
    def lengths(self) -> tuple[int, ...]:
        """Per datum, its number of target tokens."""
        return tuple([len(arrays.weights) for arrays in self.arrays])

    @cached_property
    def reference_sums(self) -> torch.Tensor | None:
        """The reference's weighted sum of logprobs per datum, float64 `[datums]`: the same in every epoch."""
        if self.reference_logprobs is None:
            return None
        weights = torch.from_numpy(np.concatenate(self.weights))
        return segment_sums(torch.cat(self.reference_logprobs), torch.tensor(self.lengths), weights)

    @property
    def trained_lengths(self) -> tuple[int, ...]:
        """Per datum, its number of target tokens of non-zero weight."""
        return tuple([arrays.trained for arrays in self.arrays])

    @property
    def targets(self) -> tuple[np.ndarray, ...]:
        """Per datum, its target tokens, int64 `[target tokens]`."""
        return tuple([arrays.targets for arrays in self.arrays])

    @property
    def prompts(self) -> tuple[np.ndarray, ...]:
        """Per datum, its tokens before the first trained one, int64; all of them where none is trained."""
        return tuple([arrays.prompt for arrays in self.arrays])


class Groups(Sequence[Group]):
    """The groups of a run, in memory or on disk."""

    @abstractmethod
    def take(self, positions: Sequence[int]) -> list[Group]:
        """Read the groups at some positions, in that order; reading many at once is cheaper."""

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> list[Group]: ...
    def __getitem__(self, index: int | slice) -> Group | list[Group]:
        """Read a group, or a list of them."""
        positions = range(len(self))[index]
        return self.take(positions) if isinstance(positions, range) else self.take([positions])[0]

    def __iter__(self) -> Iterator[Group]:
        """Read all groups, a few hundred at a time."""
        for start in range(0, len(self), READ_AT_ONCE):
            yield from self[start : start + READ_AT_ONCE]
