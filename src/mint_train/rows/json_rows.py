"""JSON Lines, streamed, and JSON arrays: each row keeps the line that it began on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

from mint_train.errors import DataError, Source
from mint_train.rows.compression import numbered_lines
from mint_train.rows.row import BadRow, Row, make_row


def read_json(file: IO[bytes], name: str) -> Iterator[Row | BadRow]:
    """Read rows as they come; the two forms are told apart by content: an array begins with `[`.

    JSON Lines are read line by line, whatever their number; a broken line is a bad row. An array is held in
    memory whole, and what breaks it hides the rows behind, so that it ends the reading.

    Raises:
        DataError: the file cannot be read, or an array is broken; with the line.
    """
    parser, lines = Parser(), numbered_lines(file, name)
    for number, line in lines:
        if not line.strip():
            continue
        if line.lstrip().startswith(b"["):
            whole = line + b"".join(rest for _, rest in lines)
            for value, begins in json_array(decode(whole, name, number), name, number, parser.decoder):
                yield parser.checked(make_row(value, Source(name, begins)))
            return
        yield parse_line(line, Source(name, number), parser)
        break
    for number, line in lines:
        if line.strip():
            yield parse_line(line, Source(name, number), parser)


class Parser:
    """A JSON decoder that notes a key that stands twice in an object, of which the later value would win."""

    def __init__(self) -> None:
        self.twice: str | None = None
        self.decoder = json.JSONDecoder(object_pairs_hook=self.note)

    def note(self, members: list[tuple[str, Any]]) -> dict[str, Any]:
        """Make an object of its members."""
        values = dict(members)
        if len(values) != len(members):
            names = [name for name, _ in members]
            self.twice = next(name for name in names if names.count(name) > 1)
        return values

    def checked(self, row: Row | BadRow) -> Row | BadRow:
        """Return a row that was parsed since the last call, or why it is a bad one."""
        if self.twice is None:
            return row
        reason, self.twice = f'the key "{self.twice}" stands twice in one object; keep one of them', None
        return BadRow(row.source, reason)


def parse_line(line: bytes, source: Source, parser: Parser) -> Row | BadRow:
    """Parse one line of JSON Lines."""
    try:
        return parser.checked(make_row(parser.decoder.decode(line.decode("utf-8")), source))
    except UnicodeDecodeError as error:
        return BadRow(source, not_utf8(error))
    except (ValueError, RecursionError) as error:
        return BadRow(source, broken_json(error))


def decode(raw: bytes, name: str, first_line: int) -> str:
    """Decode a whole array.

    Raises:
        DataError: it is not UTF-8, with the line.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + raw[: error.start].count(b"\n")
        raise DataError(f"{name}:{line}: {not_utf8(error)}") from error


def not_utf8(error: UnicodeDecodeError) -> str:
    """Say which byte is not UTF-8."""
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x}); convert the file to UTF-8"


def json_array(text: str, name: str, first_line: int, decoder: json.JSONDecoder) -> Iterator[tuple[Any, int]]:
    """Yield each element of a JSON array with the line that it begins on."""
    position, line, counted = skip_space(text, text.index("[") + 1), first_line, 0
    more = text[position : position + 1] != "]"
    while more:
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            broken = first_line - 1 + getattr(error, "lineno", line - first_line + 1)
            raise DataError(f"{name}:{broken}: {broken_json(error)}") from error
        yield value, line
        position = skip_space(text, position)
        separator = text[position : position + 1]
        if separator not in (",", "]"):
            broken = first_line + text.count("\n", 0, position)
            raise DataError(f"{name}:{broken}: broken JSON: expected , or ] after a row")
        more = separator == ","
        if more:
            position = skip_space(text, position + 1)
    if text[position + 1 :].strip():
        broken = first_line + text.count("\n", 0, position)
        raise DataError(f"{name}:{broken}: broken JSON: something follows the closing ]")


def broken_json(error: ValueError | RecursionError) -> str:
    """Say what is broken; beside syntax, Python refuses huge integers and very deep nesting."""
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON at column {error.colno}: {error.msg}"
    return f"JSON that cannot be read: {error}"


def skip_space(text: str, position: int) -> int:
    """Return the first position at or after one that is not white space."""
    while text[position : position + 1].isspace():
        position += 1
    return position
