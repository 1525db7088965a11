"""Convert Arrow arrays from and to Python and numpy by their buffers.

`pa.array` and `to_numpy` would import pandas if it is installed, which takes half a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa


def string_array(values: Sequence[str]) -> pa.Array:
    """Make an array of strings."""
    encoded = [value.encode() for value in values]
    buffers = [None, pa.py_buffer(_offsets(encoded)), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


def number_array(values: Sequence[float | None] | np.ndarray, kind: pa.DataType) -> pa.Array:
    """Make an array of numbers of the Arrow type `kind`; None becomes a null."""
    if isinstance(values, np.ndarray):
        valid, numbers = None, values
    else:
        valid = _validity(values)
        numbers = np.array([0 if value is None else value for value in values])
    numbers = np.ascontiguousarray(numbers, dtype=kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(numbers)])


def list_array(values: Sequence[np.ndarray | Sequence[float] | None], kind: pa.DataType) -> pa.Array:
    """Make an array of lists of numbers of the Arrow type `kind`; None becomes a null."""
    arrays = [np.empty(0) if value is None else np.asarray(value) for value in values]
    flat = number_array(np.concatenate(arrays) if arrays else np.empty(0), kind)
    buffers = [_validity(values), pa.py_buffer(_offsets(arrays))]
    return pa.Array.from_buffers(pa.list_(kind), len(values), buffers, children=[flat])


def map_array(
    values: Sequence[Sequence[tuple[str, Any]]], items: Callable[[Sequence[Any]], pa.Array]
) -> pa.Array:
    """Make an array of maps with string keys from lists of pairs.

    Args:
        values: per map, its keys and values.
        items: makes an array of all maps' values.
    """
    pairs = list(chain.from_iterable(values))
    offsets = number_array(_offsets(values), pa.int32())
    keys = string_array([key for key, _ in pairs])
    return pa.MapArray.from_arrays(offsets, keys, items([value for _, value in pairs]))


def _offsets(values: Sequence[Any]) -> np.ndarray:
    return np.cumsum([0, *map(len, (() if value is None else value for value in values))], dtype=np.int32)


def _validity(values: Sequence[Any]) -> pa.Buffer | None:
    """Return Arrow's bitmap of the values that are not None; None if all of them are not."""
    if all(value is not None for value in values):
        return None
    return pa.py_buffer(np.packbits([value is not None for value in values], bitorder="little"))


def view_numbers(array: pa.Array) -> np.ndarray:
    """View an array of numbers without a copy; nulls have any value."""
    values = np.frombuffer(array.buffers()[1] or b"", dtype=array.type.to_pandas_dtype())
    return values[array.offset : array.offset + len(array)]


def valid_mask(array: pa.Array) -> np.ndarray:
    """Return which values are not null: bool `[values]`."""
    bitmap = array.buffers()[0]
    if bitmap is None:
        return np.ones(len(array), dtype=bool)
    bits = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), bitorder="little")
    return bits[array.offset : array.offset + len(array)].astype(bool)
