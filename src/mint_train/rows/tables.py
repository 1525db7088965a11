"""CSV, Parquet, Arrow and the Hugging Face hub: rows of columns."""

from __future__ import annotations

import csv
import glob
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mint_train.errors import DataError, Source
from mint_train.rows.compression import (
    MAX_ROW_BYTES,
    no_such_file,
    not_utf8,
    numbered_lines,
    one_line,
    too_large,
)
from mint_train.rows.row import BadRow, Row

DELIMITERS = {".csv": ",", ".tsv": "\t"}
BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
"""Builders of the `datasets` library by suffix."""
DEFAULT_SPLIT = "train"


def read_csv(
    file: IO[bytes], name: str, delimiter: str, most_bytes: int = MAX_ROW_BYTES
) -> Iterator[Row | BadRow]:
    """Read rows of text under the columns of the first line; each keeps the line that it began on.

    Cells stay text: we do not infer types.

    Raises:
        DataError: the file is not UTF-8, its header names a column twice, a quote is never closed, or a row
            holds more than `most_bytes`.
    """
    lines = RowLines(file, name, most_bytes)
    csv.field_size_limit(sys.maxsize)  # a completion may be longer than the module's 128 KiB
    reader = csv.reader(lines.texts(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        begins = lines.begins = reader.line_num + 1
        lines.size = 0
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{name}:{begins}: broken CSV: {error}") from error
        source = Source(name, begins)
        if not cells:
            continue
        if header is None:
            header = cells
            if len(set(header)) < len(header):
                raise DataError(f"{source}: the header names a column twice: {', '.join(header)}")
            refuse_other_delimiter(header, source, delimiter)
        elif len(cells) == len(header):
            yield Row(dict(zip(header, cells, strict=True)), source)
        else:
            yield BadRow(source, f"holds {len(cells)} cells; the header names {len(header)} columns")


def refuse_other_delimiter(header: list[str], source: Source, delimiter: str) -> None:
    """Refuse a header that is one column only because another character separates its names.

    Raises:
        DataError: naming the character and what to do.
    """
    other = next((each for each in ";\t,|" if each != delimiter and each in header[0]), None)
    if len(header) == 1 and other is not None:
        known = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
        raise DataError(
            f"{source}: the only column is {header[0]!r}: it is separated by {known[other]}, not "
            f"{known[delimiter]}; save it with commas as .csv, or with tabs as .tsv"
        )


class RowLines:
    """The lines of a file as text, and how many bytes the row has that they are read for."""

    def __init__(self, file: IO[bytes], name: str, most_bytes: int) -> None:
        self.file, self.name, self.most_bytes = file, name, most_bytes
        self.begins, self.size = 1, 0

    def texts(self) -> Iterator[str]:
        """Yield the lines.

        Raises:
            DataError: one is not UTF-8, or the row has become too large.
        """
        for number, line in numbered_lines(self.file, self.name, self.most_bytes):
            self.size += len(line)
            if self.size > self.most_bytes:
                raise DataError(f"{self.name}:{self.begins}: {too_large(self.most_bytes)}")
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{self.name}:{number}: {not_utf8(error)}") from error


def read_table(
    path: Path, builder: str, name: str, most_bytes: int = MAX_ROW_BYTES
) -> Iterator[Row | BadRow]:
    """Stream the rows of a Parquet or Arrow file, numbered from 1.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    if not path.is_file():
        raise no_such_file(path, name)
    # they need pyarrow, which other forms of files do without
    from mint_train.rows.arrow_tables import is_cut_off, plain_rows

    if builder == "arrow" and is_cut_off(path):
        raise DataError(f"{name}: the stream has no end: the file breaks off, or its writer never closed it")
    # the library takes a pattern, and a file's name may hold [ or *
    files = [glob.escape(str(path.resolve()))]
    # it takes twenty times as long as pyarrow alone
    rows = plain_rows(path, builder) or load_rows(builder, data_files=files, streaming=True)
    for number, values in enumerate(readable(rows, name), start=1):
        source = Source(name, number, "row")
        large = size_of(values) > most_bytes
        yield BadRow(source, too_large(most_bytes)) if large else Row(values, source)


def readable(rows: Iterator[dict[str, Any]], label: str) -> Iterator[dict[str, Any]]:
    """Iterate rows that a library reads, without absent keys; whatever it raises becomes one line.

    Raises:
        DataError: naming what was to be read.
    """
    try:
        yield from map(without_absent, rows)
    except Exception as error:
        raise DataError(f"{label}: cannot be read: {type(error).__name__}: {one_line(error)}") from error


def size_of(value: Any) -> int:
    """Return about how many bytes a value would have as text."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(len(str(key)) + size_of(inner) for key, inner in value.items())
    if isinstance(value, list):
        return sum(map(size_of, value)) if value and isinstance(value[0], str | dict | list) else len(value)
    return 1


def read_hub(name: str, reference: str, *, streaming: bool) -> Iterator[dict[str, Any]]:
    """Read a data set by its name on the hub, or a folder of the same layout.

    Args:
        name: what an error calls it.
        reference: `org/name`, `org/name/config` or a folder, each perhaps with `:split` behind it.
        streaming: read it over the network row by row, without keeping a copy.

    Raises:
        DataError: it cannot be reached or read, or does not have the split.
    """
    path, _, split = reference.partition(":")
    parts = path.split("/")
    config = None
    if not Path(path).exists() and len(parts) == 3:
        path, config = "/".join(parts[:2]), parts[2]
    rows = load_rows(path, name=config, split=split or DEFAULT_SPLIT, streaming=streaming)
    return readable(rows, name)


def load_rows(path: str, **arguments: Any) -> Iterator[dict[str, Any]]:
    """Iterate what `datasets.load_dataset` loads."""
    import datasets

    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it would log is in the error
    yield from undecoded(datasets.load_dataset(path, **{"split": DEFAULT_SPLIT} | arguments))


def undecoded(rows: Any) -> Any:
    """Return a data set whose images and sounds stay bytes: decoding them needs other libraries."""
    if rows.features is None or not any(map(has_media, rows.features.values())):
        return rows
    features = rows.features.copy()
    for feature in features.values():
        set_undecoded(feature)
    return rows.cast(features)


def inner_features(feature: Any) -> list[Any]:
    """Return the features that a list or an object of them is made of."""
    if isinstance(feature, dict):
        return list(feature.values())
    if isinstance(feature, list):
        return feature
    return [feature.feature] if hasattr(feature, "feature") else []


def has_media(feature: Any) -> bool:
    """Return whether a feature is decoded when it is read."""
    return hasattr(feature, "decode") or any(map(has_media, inner_features(feature)))


def set_undecoded(feature: Any) -> None:
    """Leave whatever is decoded in a feature as the bytes that it is."""
    if hasattr(feature, "decode"):
        feature.decode = False
    for inner in inner_features(feature):
        set_undecoded(inner)


def without_absent(values: dict[str, Any]) -> dict[str, Any]:
    """Return a row without the nulls in its objects: a table has them where a row has no such key."""
    return {name: pruned(value) for name, value in values.items()}


def pruned(value: Any) -> Any:
    """Return a value without the keys of objects that are null."""
    if isinstance(value, dict):
        return {key: pruned(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return [pruned(inner) for inner in value]
    return value


def as_json_line(values: dict[str, Any]) -> bytes:
    """Write a row of the hub as a line of JSON; what JSON does not have (a date) becomes text.

    Bytes become an object, which no field takes for text: as text they would be trained as Python shows them.
    """

    def written(value: object) -> object:
        return {"bytes": value.hex()} if isinstance(value, bytes) else str(value)

    return json.dumps(values, ensure_ascii=True, default=written).encode() + b"\n"
