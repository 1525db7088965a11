"""Write groups of datums to an Arrow file, chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from mint_train.batches.datums import Attachment, DatumArrays
from mint_train.batches.groups import Group
from mint_train.groups.arrow_arrays import list_array, map_array, number_array, string_array

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
        self._waiting.append(encode_groups(groups))
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


def encode_groups(groups: Sequence[Group]) -> pa.RecordBatch:
    """Turn groups into rows of the file."""
    arrays = [one for group in groups for one in group.arrays]
    attached = [each for group in groups for each in group.attached or ({},) * len(group.datums)]
    columns = [*token_columns(arrays), *weight_columns(arrays), *attachment_columns(attached)]
    offsets = np.cumsum([0, *(len(group.datums) for group in groups)])
    sources = [group.source for group in groups]
    return pa.record_batch(
        [
            string_array([source.path for source in sources]),
            number_array([source.line for source in sources], pa.int64()),
            string_array([source.unit for source in sources]),
            number_array([group.weight for group in groups], pa.float64()),
            pa.ListArray.from_arrays(
                number_array(offsets, pa.int32()), pa.StructArray.from_arrays(columns, fields=list(DATUM))
            ),
        ],
        schema=SCHEMA,
    )


def token_columns(arrays: Sequence[DatumArrays]) -> tuple[pa.Array, pa.Array]:
    """Make the columns of tokens and targets, of datums that have as many targets as inputs."""
    inputs = np.concatenate([one.inputs for one in arrays])
    targets = np.concatenate([one.targets for one in arrays])
    lengths = np.array([len(one.inputs) for one in arrays])
    ends = lengths.cumsum()
    unlike = inputs[1:] != targets[:-1]
    unlike[ends[:-1] - 1] = False  # what follows there is another datum's
    shifted = ~owners(unlike, ends)
    tokens = np.insert(inputs, ends[shifted], targets[ends[shifted] - 1])
    offsets = np.cumsum([0, *(lengths + shifted)])
    unshifted = [None if follows else one.targets for follows, one in zip(shifted, arrays, strict=True)]
    return (
        pa.ListArray.from_arrays(number_array(offsets, pa.int32()), number_array(tokens, pa.int32())),
        list_array(unshifted, pa.int32()),
    )


def weight_columns(arrays: Sequence[DatumArrays]) -> tuple[pa.Array, pa.Array]:
    """Make the columns of leading weights that are 0.0 where all others are 1.0, and of all other weights."""
    weights = np.concatenate([one.weights for one in arrays])
    lengths = [len(one.weights) for one in arrays]
    ends, untrained = np.cumsum(lengths), [one.prompt_length - 1 for one in arrays]
    trained = np.arange(len(weights)) >= np.repeat(ends - lengths + untrained, lengths)
    uneven = owners(weights != trained, ends)
    leading = [None if own else count for own, count in zip(uneven, untrained, strict=True)]
    kept = [one.weights if own else None for own, one in zip(uneven, arrays, strict=True)]
    return number_array(leading, pa.int32()), list_array(kept, pa.float32())


def attachment_columns(attached: Sequence[Mapping[str, Attachment]]) -> tuple[pa.Array, pa.Array]:
    """Make the columns of the numbers and of the sequences of numbers that are attached to datums."""
    numbers, sequences = (
        [[pair for pair in each.items() if isinstance(pair[1], Sequence) is many] for each in attached]
        for many in (False, True)
    )
    return (
        map_array(numbers, lambda values: number_array(values, pa.float64())),
        map_array(sequences, lambda values: list_array(values, pa.float64())),
    )


def owners(marked: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return which of some consecutive parts, given where each ends, hold what is marked: bool `[parts]`."""
    found = np.zeros(len(ends), dtype=bool)
    found[np.searchsorted(ends, marked.nonzero()[0], side="right")] = True
    return found
