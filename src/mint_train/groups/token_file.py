"""Read groups of datums from an Arrow file, group by group."""

from __future__ import annotations

import bisect
import hashlib
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mint_train.batches.datums import ArrayDatum, Attachment, DatumArrays
from mint_train.batches.groups import Group, Groups
from mint_train.errors import BackendError, Source
from mint_train.groups.arrow_arrays import (
    valid_mask,
    view_numbers,
)


def digest_of(datums: Iterable[tuple[np.ndarray, np.ndarray]]) -> bytes:
    """Identify a group by the inputs and targets of its datums, ``[tokens]`` each."""
    digest = hashlib.blake2b(digest_size=16)
    for inputs, targets in datums:
        digest.update(inputs.tobytes() + b"|" + targets.tobytes() + b"||")
    return digest.digest()


class ListColumn:
    """A column of lists of numbers, each read as a view of what lies in the file."""

    def __init__(self, column: pa.ListArray) -> None:
        self._offsets = view_numbers(column.offsets)
        self._values = view_numbers(column.values)
        self._known = valid_mask(column)

    def lengths(self) -> np.ndarray:
        """Count the numbers of each list, `[lists]`."""
        return np.diff(self._offsets)

    def squares(self, starts: np.ndarray) -> np.ndarray:
        """Add up the squares of the numbers of lists from each start to the next, int64 `[starts - 1]`."""
        begins = self._offsets[starts]
        numbers = self._values[: begins[-1]].astype(np.int64)
        sums: np.ndarray = np.add.reduceat(numbers * numbers, begins[:-1])
        return sums

    def known(self) -> np.ndarray:
        """Return which lists are not null, `[lists]`."""
        return self._known

    def view(self, index: int) -> np.ndarray:
        """Return a list; one that is null is empty."""
        values: np.ndarray = self._values[self._offsets[index] : self._offsets[index + 1]]
        return values

    def __getitem__(self, index: int) -> np.ndarray | None:
        return self.view(index) if self._known[index] else None


def joined(arrays: Sequence[np.ndarray], dtype: type[np.generic]) -> Iterator[np.ndarray]:
    """Copy arrays of one dtype into one array of another, and yield the part of each.

    One copy, since numpy offers the interpreter to the other threads with each copy of 500 numbers.
    """
    held = arrays[0].dtype if arrays else dtype
    whole = np.frombuffer(b"".join([array.data for array in arrays]), held).astype(dtype)
    return cut(whole, [len(array) for array in arrays])


def cut(whole: np.ndarray, lengths: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield consecutive parts of an array, as views of it."""
    for end, length in zip(accumulate(lengths), lengths, strict=True):
        yield whole[end - length : end]


class StoredDatum(NamedTuple):
    """A datum as it lies in the file: views, and None for what follows from the others."""

    tokens: np.ndarray
    targets: np.ndarray | None
    weights: np.ndarray | None
    untrained: int


def decode_datums(stored: Sequence[StoredDatum]) -> Iterator[DatumArrays]:
    """Yield the arrays of datums."""
    all_tokens = joined([datum.tokens for datum in stored], np.int64)
    for datum, tokens, plain in zip(stored, all_tokens, plain_weights(stored), strict=True):
        if datum.targets is None:
            inputs, targets = tokens[:-1], tokens[1:]
        else:
            inputs, targets = tokens, datum.targets.astype(np.int64)
        if datum.weights is None:
            yield DatumArrays(inputs, targets, plain, datum.untrained + 1, len(plain) - datum.untrained)
        else:
            yield DatumArrays.counted(inputs, targets, datum.weights.copy())  # torch warns of the file's own


def plain_weights(stored: Sequence[StoredDatum]) -> Iterator[np.ndarray]:
    """Yield the weights that each datum has where none lie in the file: 0.0 for the untrained, then 1.0."""
    lengths = [len(datum.tokens) - 1 if datum.targets is None else len(datum.targets) for datum in stored]
    untrained = np.array([datum.untrained for datum in stored], dtype=np.int64)
    counts = np.stack([untrained, lengths - untrained], axis=1).ravel()
    values = np.tile(np.array([0.0, 1.0], dtype=np.float32), len(stored))
    return cut(np.repeat(values, counts), lengths)


class StoredChunk:
    """The groups of one chunk of the file."""

    def __init__(self, chunk: pa.RecordBatch) -> None:
        self._path, self._line, self._unit, weights, groups = chunk.columns
        self._group_weights = view_numbers(weights)
        self._starts = view_numbers(groups.offsets)
        datums = groups.values
        self._tokens, self._targets, self._weights = (
            ListColumn(datums.field(name)) for name in ("tokens", "targets", "weights")
        )
        untrained = datums.field("untrained")
        self._untrained = np.where(valid_mask(untrained), view_numbers(untrained), 0)
        columns = [datums.field(name) for name in ("numbers", "sequences")]
        # most losses attach nothing
        self._attached = [(column, view_numbers(column.offsets)) for column in columns if len(column.keys)]

    def group(self, row: int, arrays: tuple[DatumArrays, ...]) -> Group:
        """Make a group of its datums' arrays and what else is in the file."""
        return Group(
            datums=tuple([ArrayDatum(one.inputs, one.targets, one.weights) for one in arrays]),
            source=Source(self._path[row].as_py(), self._line[row].as_py(), self._unit[row].as_py()),
            attached=tuple([self.attached(index) for index in self.datum_indices(row)]),
            known_arrays=arrays,
            weight=float(self._group_weights[row]),
        )

    def longest(self) -> np.ndarray:
        """Count the tokens of each group's longest datum, `[groups]`."""
        counts: np.ndarray = np.maximum.reduceat(self._tokens.lengths(), self._starts[:-1])
        return counts

    def inputs(self) -> np.ndarray:
        """Count the input tokens of each group, `[groups]`."""
        with_last_target = ~self._targets.known()
        counts: np.ndarray = np.add.reduceat(self._tokens.lengths() - with_last_target, self._starts[:-1])
        return counts

    def squares(self, without: Collection[int]) -> np.ndarray:
        """Add up the squares of each group's tokens, int64 `[groups]`; see `StoredGroups.squares`."""
        if not without:
            return self._tokens.squares(self._starts)
        of_datums = self._tokens.squares(np.arange(self._starts[-1] + 1))
        positions = np.arange(len(of_datums)) - np.repeat(self._starts[:-1], np.diff(self._starts))
        counted = np.where(np.isin(positions, [*without]), 0, of_datums)
        sums: np.ndarray = np.add.reduceat(counted, self._starts[:-1])
        return sums

    def digests(self, without: Collection[int], squares: np.ndarray | None) -> Iterator[bytes]:
        """Identify groups by their tokens; see `StoredGroups.digests`."""
        rows = np.arange(len(self._starts) - 1)
        for row in (rows if squares is None else rows[np.isin(self.squares(without), squares)]).tolist():
            datums = [index for at, index in enumerate(self.datum_indices(row)) if at not in without]
            yield digest_of((self._tokens.view(index), self._targets.view(index)) for index in datums)

    def datum_indices(self, row: int) -> range:
        """Say where a group's datums are."""
        return range(self._starts[row], self._starts[row + 1])

    def datum(self, index: int) -> StoredDatum:
        """Find a datum in the file."""
        return StoredDatum(
            self._tokens.view(index), self._targets[index], self._weights[index], int(self._untrained[index])
        )

    def attached(self, index: int) -> dict[str, Attachment]:
        """Read what is attached to a datum."""
        if not self._attached:
            return {}
        present = [column for column, starts in self._attached if starts[index] < starts[index + 1]]
        return dict(chain.from_iterable(column[index].as_py() for column in present))


def integers(parts: Iterable[np.ndarray]) -> Sequence[int]:
    """Return the numbers of arrays, one after another: 8 bytes each, where a list takes 40."""
    numbers = array("q")
    for part in parts:
        numbers.frombytes(part.astype(np.int64).tobytes())
    return numbers


class StoredGroups(Groups):
    """The groups of an Arrow file."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            BackendError: it is broken.
        """
        try:
            file = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        except (OSError, pa.ArrowInvalid) as error:
            raise BackendError(f"{path} is broken ({error}); delete {path.parent}") from error
        self._chunks = [StoredChunk(batch) for batch in batches]
        self._ends = list(accumulate(batch.num_rows for batch in batches))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def longest(self) -> Sequence[int]:
        """Count the tokens of each group's longest datum, without reading them."""
        return integers(chunk.longest() for chunk in self._chunks)

    def inputs(self) -> Sequence[int]:
        """Count the input tokens of each group, without reading them."""
        return integers(chunk.inputs() for chunk in self._chunks)

    def squares(self, without: Collection[int] = ()) -> np.ndarray:
        """Add up the squares of each group's tokens, int64 `[groups]`: those of equal groups are equal.

        Args:
            without: positions in a group of datums that do not count.
        """
        return np.concatenate([chunk.squares(without) for chunk in self._chunks])

    def digests(self, without: Collection[int] = (), squares: np.ndarray | None = None) -> Iterator[bytes]:
        """Identify each group by the tokens of its datums.

        Args:
            without: positions in a group of datums that do not count.
            squares: leave out groups whose sum of squares is none of these.
        """
        for chunk in self._chunks:
            yield from chunk.digests(without, squares)

    def take(self, indices: Sequence[int]) -> list[Group]:
        """Read groups, in the order of their indices."""
        rows = [self._find(index) for index in indices]
        arrays = decode_datums(
            [chunk.datum(index) for chunk, row in rows for index in chunk.datum_indices(row)]
        )
        return [chunk.group(row, tuple(islice(arrays, len(chunk.datum_indices(row))))) for chunk, row in rows]

    def _find(self, index: int) -> tuple[StoredChunk, int]:
        """Find the chunk that a group is in, and its row there."""
        number = bisect.bisect_right(self._ends, index)
        return self._chunks[number], index - (self._ends[number - 1] if number else 0)
