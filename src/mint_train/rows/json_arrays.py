"""A JSON array of rows, read piece by piece: memory holds one row and a little more."""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Iterator
from typing import IO, Any

from mint_train.errors import DataError
from mint_train.rows.compression import BUFFER, cannot_read, not_utf8, too_large

SPACE = re.compile(r"\s*")


class JsonArray:
    """The text of an array from its opening bracket on, of which what has been parsed is let go."""

    def __init__(self, file: IO[bytes], name: str, begun: bytes, line: int, most_bytes: int) -> None:
        """Take a file of which a part has been read.

        Args:
            file: what is left of it.
            name: what an error calls it.
            begun: what was read of it, white space and the bracket.
            line: the line that this part begins on.
            most_bytes: the size of a row above which it is refused.
        """
        self.file, self.name, self.most_bytes = file, name, most_bytes
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text, self.position = "", 0
        self.line, self.column = line, 0
        """Where the text that is held begins: its line, and the characters of it that were let go."""
        self.ended = False
        self.add(begun)

    def rows(self, parser: json.JSONDecoder) -> Iterator[tuple[Any, int]]:
        """Yield each element with the line that it begins on.

        Raises:
            DataError: the array is broken, or an element of it too large; with the line.
        """
        self.position = self.text.index("[") + 1
        more = self.next_character() != "]"
        while more:
            self.let_go()
            line = self.line
            yield self.element(parser), line
            separator = self.next_character()
            if separator not in (",", "]"):
                raise DataError(f"{self.here()}: broken JSON: expected , or ] after a row")
            more = separator == ","
            if more:
                self.position += 1
                self.next_character()
        self.position += 1
        if self.next_character():
            raise DataError(f"{self.here()}: broken JSON: something follows the closing ]")

    def element(self, parser: json.JSONDecoder) -> Any:
        """Parse the element at the position, reading on until it is whole."""
        while True:
            try:
                value, end = parser.raw_decode(self.text, self.position)
            except RecursionError as error:
                raise DataError(f"{self.here()}: JSON that cannot be read: {error}") from error
            except ValueError as error:
                self.read_on_after(error)
                continue
            if end == len(self.text) and self.read():
                continue  # a number may go on
            self.position = end
            return value

    def read_on_after(self, error: ValueError) -> None:
        """Read on because the text may only be incomplete.

        Raises:
            DataError: the file ends within the element, or the element is too large already.
        """
        if len(self.text) - self.position > self.most_bytes:
            raise DataError(f"{self.here()}: {too_large(self.most_bytes)}, or its JSON is broken") from error
        if self.read():
            return
        if not isinstance(error, json.JSONDecodeError):
            raise DataError(f"{self.here()}: JSON that cannot be read: {error}") from error
        column = error.colno + (self.column if error.lineno == 1 else 0)
        place = f"{self.name}:{self.line + error.lineno - 1}"
        raise DataError(f"{place}: broken JSON at column {column}: {syntax_problem(error)}") from error

    def next_character(self) -> str:
        """Skip white space and return what stands behind it; nothing at the end of the file."""
        while True:
            self.position = SPACE.match(self.text, self.position).end()  # type: ignore[union-attr]
            if self.position < len(self.text) or not self.read():
                return self.text[self.position : self.position + 1]
            self.let_go()

    def read(self) -> bool:
        """Add the next piece of the file to the text; return whether there was any."""
        if self.ended:
            return False
        try:
            piece = self.file.read(BUFFER)
        except (OSError, EOFError, zlib.error) as error:
            raise cannot_read(self.name, self.line + self.text.count("\n"), error) from error
        self.ended = not piece
        before = len(self.text)
        self.add(piece)
        return len(self.text) > before or (not self.ended and self.read())

    def add(self, piece: bytes) -> None:
        """Decode a piece and add it.

        Raises:
            DataError: it is not UTF-8, with the line.
        """
        try:
            self.text += self.decoder.decode(piece, final=self.ended)
        except UnicodeDecodeError as error:
            line = self.line + self.text.count("\n") + error.object[: error.start].count(b"\n")
            raise DataError(f"{self.name}:{line}: {not_utf8(error)}") from error

    def let_go(self) -> None:
        """Let go of what lies before the position."""
        gone, self.text, self.position = self.text[: self.position], self.text[self.position :], 0
        self.line += gone.count("\n")
        self.column = len(gone) - gone.rindex("\n") - 1 if "\n" in gone else self.column + len(gone)

    def here(self) -> str:
        """Return the file and the line of the position."""
        return f"{self.name}:{self.line + self.text.count(chr(10), 0, self.position)}"


def syntax_problem(error: json.JSONDecodeError) -> str:
    """Say what is wrong, where it is a mistake that people often make, else in Python's words."""
    before, rest = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    if rest.rstrip() == "," and before.endswith("}"):
        return "a comma follows the row; JSON Lines have none between rows"
    if (before.endswith(",") and rest[:1] in ("}", "]")) or re.match(r",\s*[}\]]", rest):
        return "a comma stands before the closing bracket; leave it out"
    if rest.startswith("'"):
        return "single quotes; JSON takes double ones"
    return error.msg
