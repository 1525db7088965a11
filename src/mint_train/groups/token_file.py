"""Groups of datums on disk: an Arrow file that is written in chunks and read group by group."""

from __future__ import annotations

import bisect
import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mint_train.batches.datums import ArrayDatum, Attachment, DatumArrays
from mint_train.batches.groups import Group, Groups
from mint_train.errors import BackendError, Source
from mint_train.groups.arrow_arrays import (
    list_array,
    map_array,
    number_array,
    string_array,
    valid_mask,
    view_numbers,
)

DATUM = pa.struct(
    {
        # inputs and the last target: 4 bytes a token where the targets are the inputs shifted by one
        "tokens": pa.list_(pa.int32()),
        "targets": pa.list_(pa.int32()),
        # how many leading weights are 0.0 where all others are 1.0
        "untrained": pa.int32(),
        "weights": pa.list_(pa.float32()),
        "numbers": pa.map_(pa.string(), pa.float64()),
        "sequences": pa.map_(pa.string(), pa.list_(pa.float64())),
    }
)
SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "line": pa.int64(),
        "unit": pa.string(),
        "weight": pa.float64(),
        "datums": pa.list_(DATUM),
    }
)
BYTES_AT_ONCE = 2**23
"""Of groups, that are written together."""


class GroupWriter:
    """Appends chunks of groups to an Arrow file."""

    def __init__(self, path: Path) -> None:
        self._writer = pa.ipc.new_file(str(path), SCHEMA)
        self._waiting: list[pa.RecordBatch] = []
        self.count = 0

    def write(self, groups: Sequence[Group]) -> None:
        """Append a chunk."""
        encoded = [encode_datum(*pair) for group in groups for pair in with_attached(group)]
        columns = {name: [value[name] for value in encoded] for name in DATUM.names}
        datums = pa.StructArray.from_arrays(
            [
                list_array(columns["tokens"], pa.int32()),
                list_array(columns["targets"], pa.int32()),
                number_array(columns["untrained"], pa.int32()),
                list_array(columns["weights"], pa.float32()),
                map_array(columns["numbers"], lambda values: number_array(values, pa.float64())),
                map_array(columns["sequences"], lambda values: list_array(values, pa.float64())),
            ],
            fields=list(DATUM),
        )
        offsets = np.cumsum([0, *(len(group.datums) for group in groups)])
        sources = [group.source for group in groups]
        self._waiting.append(
            pa.record_batch(
                [
                    string_array([source.path for source in sources]),
                    number_array([source.line for source in sources], pa.int64()),
                    string_array([source.unit for source in sources]),
                    number_array([group.weight for group in groups], pa.float64()),
                    pa.ListArray.from_arrays(number_array(offsets, pa.int32()), datums),
                ],
                schema=SCHEMA,
            )
        )
        self.count += len(groups)
        if sum(batch.nbytes for batch in self._waiting) >= BYTES_AT_ONCE:
            self._write_waiting()

    def _write_waiting(self) -> None:
        """Write the chunks that wait as one: a reader needs about as long for any chunk."""
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting).combine_chunks())
            self._waiting = []

    def close(self) -> None:
        """Write what waits, and the end of the file, without which it cannot be read."""
        self._write_waiting()
        self._writer.close()


def with_attached(group: Group) -> Iterator[tuple[DatumArrays, Mapping[str, Attachment]]]:
    """Yield the arrays of each datum of a group with what is attached to it."""
    attached: Sequence[Mapping[str, Attachment]] = group.attached or ({},) * len(group.datums)
    return zip(group.arrays, attached, strict=True)


def encode_datum(arrays: DatumArrays, attached: Mapping[str, Attachment]) -> dict[str, Any]:
    """Turn a datum into a value of `DATUM`."""
    inputs, targets, weights = arrays.inputs, arrays.targets, arrays.weights
    shifted = len(inputs) == len(targets) and np.array_equal(inputs[1:], targets[:-1])
    untrained = arrays.prompt_length - 1
    plain = bool((weights[untrained:] == 1).all())
    return {
        "tokens": np.append(inputs, targets[-1:]) if shifted else inputs,
        "targets": None if shifted else targets,
        "untrained": untrained if plain else None,
        "weights": None if plain else weights,
        "numbers": [(name, value) for name, value in attached.items() if not isinstance(value, Sequence)],
        "sequences": [(name, value) for name, value in attached.items() if isinstance(value, Sequence)],
    }


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
    """Yield what `encode_datum` encoded."""
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

    def squares(self) -> np.ndarray:
        """Add up the squares of each group's tokens, int64 `[groups]`: those of equal groups are equal."""
        return self._tokens.squares(self._starts)

    def digests(self, squares: np.ndarray | None) -> Iterator[bytes]:
        """Identify each group by the tokens of its datums; with `squares`, those that have one of these."""
        rows = np.arange(len(self._starts) - 1)
        for row in (rows if squares is None else rows[np.isin(self.squares(), squares)]).tolist():
            digest = hashlib.blake2b(digest_size=16)
            for index in self.datum_indices(row):
                digest.update(self._tokens.view(index).tobytes() + b"|" + self._targets.view(index).tobytes())
                digest.update(b"||")
            yield digest.digest()

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

    def squares(self) -> np.ndarray:
        """Add up the squares of each group's tokens, int64 `[groups]`: those of equal groups are equal."""
        return np.concatenate([chunk.squares() for chunk in self._chunks])

    def digests(self, squares: np.ndarray | None = None) -> Iterator[bytes]:
        """Identify each group by the tokens of its datums; with `squares`, those that have one of these."""
        for chunk in self._chunks:
            yield from chunk.digests(squares)

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
