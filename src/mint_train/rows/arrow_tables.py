"""Parquet and Arrow files whose columns are plain, streamed by pyarrow: a few rows at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

MOST_ROWS = 1000
"""Rows that are held at once."""
MOST_BYTES = 2**24
"""Bytes of a Parquet file's rows, decompressed, that are held at once; one row at least is."""
PLAIN_FEATURES = frozenset({"Value", "ClassLabel", "List", "LargeList", "Sequence"})
"""Features of the `datasets` library that it reads as they lie in the file."""
FEATURES = b"huggingface"
CONTINUES, ENDS = b"\xff" * 4, b"\xff" * 4 + b"\0" * 4
"""How each message of an Arrow stream begins, and the last one of a stream that was closed."""
PLAIN: tuple[Callable[[pa.DataType], bool], ...] = (
    types.is_string, types.is_large_string, types.is_boolean, types.is_integer, types.is_floating,
    types.is_null, types.is_binary, types.is_large_binary,
)  # fmt: skip


def plain_rows(path: Path, builder: str) -> Iterator[dict[str, Any]] | None:
    """Return the rows of a file, read as `datasets` reads them, or None where only that library can.

    So it is with images, dates and other types that it decodes or converts, and with a file that cannot be
    opened, of which it says what is wrong.

    Args:
        path: the file.
        builder: "parquet" or "arrow".
    """
    with suppress(pa.ArrowException, OSError, ValueError):
        source = pa.OSFile(str(path))  # to read on where a mapped file was cut off would end the process
        if builder == "parquet":
            file = pq.ParquetFile(source)
            return of_parquet(file) if is_plain_schema(file.schema_arrow) else None
        stream = pa.ipc.open_stream(source)  # what `datasets` writes, and tries first too
        return of_batches(stream, source) if is_plain_schema(stream.schema) else None
    return None


def is_cut_off(path: Path) -> bool:
    """Return whether a file is an Arrow stream that breaks off: between two batches no reader notices it."""
    with suppress(OSError), path.open("rb") as file:  # whoever reads on says why it cannot be read
        if file.read(len(CONTINUES)) == CONTINUES:
            file.seek(max(0, path.stat().st_size - len(ENDS)))
            return file.read() != ENDS
    return False


def of_parquet(file: pq.ParquetFile) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file."""
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    row_bytes = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=1)
    at_once = max(1, min(MOST_ROWS, MOST_BYTES // max(1, row_bytes)))
    for batch in file.iter_batches(at_once):
        yield from batch.to_pylist()


def of_batches(stream: pa.ipc.RecordBatchStreamReader, source: pa.NativeFile) -> Iterator[dict[str, Any]]:
    """Yield the rows of an Arrow stream, behind which its file must end.

    Raises:
        ArrowException: it is broken, or another stream follows it.
    """
    for batch in stream:
        batch.validate(full=True)  # offsets in a broken file may point anywhere
        for start in range(0, batch.num_rows, MOST_ROWS):
            yield from batch.slice(start, MOST_ROWS).to_pylist()
    if source.tell() < source.size():
        raise pa.ArrowInvalid("something follows the end of the stream; give joined files one by one")


def is_plain_schema(schema: pa.Schema) -> bool:
    """Return whether each column is plain, and `datasets` decodes none."""
    described = json.loads((schema.metadata or {}).get(FEATURES, b"{}"))
    if not kinds(described.get("info", {}).get("features", {})) <= PLAIN_FEATURES:
        return False
    return len(set(schema.names)) == len(schema.names) and all(is_plain(field.type) for field in schema)


def is_plain(kind: pa.DataType) -> bool:
    """Return whether values of a type are texts, numbers, truths, bytes, or lists and objects of them."""
    if types.is_list(kind) or types.is_large_list(kind):
        return is_plain(kind.value_type)
    if types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        return len({field.name for field in fields}) == len(fields) and all(is_plain(f.type) for f in fields)
    return any(suits(kind) for suits in PLAIN)


def kinds(feature: object) -> set[str]:
    """Return the types that a description of features names."""
    if isinstance(feature, list):
        return set().union(*map(kinds, feature))
    if not isinstance(feature, Mapping):
        return set()
    named = {feature["_type"]} if isinstance(feature.get("_type"), str) else set()
    return named.union(*map(kinds, feature.values()))
