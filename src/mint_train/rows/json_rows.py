"""JSON Lines, streamed, and JSON arrays: each row keeps the line that it began on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

from mint_train.errors import Source
from mint_train.rows.compression import MAX_ROW_BYTES, not_utf8, numbered_lines, too_large
from mint_train.rows.json_arrays import JsonArray, syntax_problem
from mint_train.rows.row import BadRow, Row, make_row
from mint_train.rows.values import key_twice, stands_twice


def read_json(file: IO[bytes], name: str, most_bytes: int = MAX_ROW_BYTES) -> Iterator[Row | BadRow]:
    """Read rows as they come; the two forms are told apart by content: an array begins with `[`.

    JSON Lines are read line by line, whatever their number; a broken line is a bad row. What breaks an array
    hides the rows behind, so that it ends the reading. Memory holds one row at a time.

    Args:
        file: the bytes.
        name: what an error calls the file.
        most_bytes: the size of a row above which it is a bad one, or ends an array.

    Raises:
        DataError: the file cannot be read, or an array is broken; with the line.
    """
    parser, lines = Parser(), numbered_lines(file, name, most_bytes)
    for number, line in lines:
        if not line.strip():
            continue
        if line.lstrip().startswith(b"["):
            for value, begins in JsonArray(file, name, line, number, most_bytes).rows(parser.decoder):
                yield parser.checked(make_row(value, Source(name, begins)))
            return
        yield parse_line(line, Source(name, number), parser, most_bytes)
        break
    for number, line in lines:
        if line.strip():
            yield parse_line(line, Source(name, number), parser, most_bytes)


class Parser:
    """A JSON decoder that notes a key that stands twice in an object, of which the later value would win."""

    def __init__(self) -> None:
        self.twice: str | None = None
        self.decoder = json.JSONDecoder(object_pairs_hook=self.note)

    def note(self, members: list[tuple[str, Any]]) -> dict[str, Any]:
        """Make an object of its members."""
        made = dict(members)
        if len(made) < len(members):
            self.twice = key_twice(members)
        return made

    def checked(self, row: Row | BadRow) -> Row | BadRow:
        """Return a row that was parsed since the last call, or why it is a bad one."""
        if self.twice is None:
            return row
        reason, self.twice = stands_twice(self.twice), None
        return BadRow(row.source, reason)


def parse_line(line: bytes, source: Source, parser: Parser, most_bytes: int) -> Row | BadRow:
    """Parse one line of JSON Lines."""
    if len(line) > most_bytes:
        return BadRow(source, too_large(most_bytes))
    try:
        return parser.checked(make_row(parser.decoder.decode(line.decode("utf-8")), source))
    except UnicodeDecodeError as error:
        return BadRow(source, not_utf8(error))
    except (ValueError, RecursionError) as error:
        return BadRow(source, broken_json(error))


def broken_json(error: ValueError | RecursionError) -> str:
    """Say what is broken; beside syntax, Python refuses huge integers and very deep nesting."""
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON at column {error.colno}: {syntax_problem(error)}"
    return f"JSON that cannot be read: {error}"
