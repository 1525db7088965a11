"""From a file to rows: each keeps the line that it began on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mint_train.errors import DataError, Source


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data file, uninterpreted."""

    values: dict[str, Any]
    source: Source


def read_rows(path: Path) -> list[Row]:
    """Read all rows of a JSON Lines or JSON file (an array of objects).

    The two forms are told apart by content, not by name: an array begins with `[`.

    Raises:
        DataError: the file is missing, unreadable, empty, not UTF-8 or broken; with the line.
    """
    text = read_text(path)
    name = str(path)
    pairs = json_array(text, name) if text.lstrip().startswith("[") else json_lines(text, name)
    rows = []
    for value, line in pairs:
        if not isinstance(value, dict):
            raise DataError(f"{name}:{line}: a row must be an object with fields, not {kind(value)}")
        rows.append(Row(value, Source(name, line)))
    if not rows:
        raise DataError(f"{name}: the file holds no rows")
    return rows


def read_text(path: Path) -> str:
    """Read a file as UTF-8, with or without a byte order mark."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 (byte 0x{raw[error.start]:02x}); convert the file to UTF-8"
        ) from error


def json_lines(text: str, name: str) -> Iterator[tuple[Any, int]]:
    """Yield each line's value with its line number, blank lines left out."""
    # splitlines() would also break at U+2028, which may stand inside a JSON string
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line), number
            except (ValueError, RecursionError) as error:
                raise broken_json(name, number, error) from error


def json_array(text: str, name: str) -> Iterator[tuple[Any, int]]:
    """Yield each element of a JSON array with the line that it begins on."""
    decoder = json.JSONDecoder()
    position, line, counted = skip_space(text, text.index("[") + 1), 1, 0
    more = text[position : position + 1] != "]"
    while more:
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise broken_json(name, getattr(error, "lineno", line), error) from error
        yield value, line
        position = skip_space(text, position)
        separator = text[position : position + 1]
        if separator not in (",", "]"):
            broken = 1 + text.count("\n", 0, position)
            raise DataError(f"{name}:{broken}: broken JSON: expected , or ] after a row")
        more = separator == ","
        if more:
            position = skip_space(text, position + 1)
    if text[position + 1 :].strip():
        broken = 1 + text.count("\n", 0, position)
        raise DataError(f"{name}:{broken}: broken JSON: something follows the closing ]")


def broken_json(name: str, line: int, error: ValueError | RecursionError) -> DataError:
    """Say what is broken where; beside syntax, Python refuses huge integers and very deep nesting."""
    if isinstance(error, json.JSONDecodeError):
        return DataError(f"{name}:{line}: broken JSON at column {error.colno}: {error.msg}")
    return DataError(f"{name}:{line}: JSON that cannot be read: {error}")


def skip_space(text: str, position: int) -> int:
    """Return the first position at or after one that is no white space."""
    while text[position : position + 1].isspace():
        position += 1
    return position


def kind(value: object) -> str:
    """Name the JSON type of a value as a user would."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
