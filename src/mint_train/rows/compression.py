"""Opening files that may be compressed, told by their first bytes and not by their names."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from mint_train.errors import DataError
from mint_train.rows.file_kinds import BYTES, what_it_is

GZIP = b"\x1f\x8b"
ZSTANDARD = b"\x28\xb5\x2f\xfd"
SUFFIXES = (".gz", ".zst")
BUFFER = 1 << 18
"""Bytes that are read at once."""
MAX_ROW_BYTES = 16_000_000
"""Bytes of a row, decompressed, above which it is not read unless more are allowed."""


def open_plain(path: Path, name: str) -> IO[bytes]:
    """Open a file as the bytes that it holds, decompressed where it is gzip or Zstandard.

    Args:
        path: the file.
        name: what an error calls it.

    Raises:
        DataError: it is missing, cannot be opened, or is of a kind that holds no rows.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise no_such_file(path, name) from None
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from error
    first = file.peek(BYTES)
    if first.startswith(GZIP):
        # whoever reads on says where it is broken
        with suppress(OSError, EOFError, zlib.error), gzip.open(path) as unzipped:
            refuse(what_it_is(unzipped.read(BYTES), path), name)
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if first.startswith(ZSTANDARD):
        import pyarrow as pa  # which, unlike other readers, notices a stream that is cut off

        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file), "zstd"), BUFFER)
    refuse(what_it_is(first, path), name)
    return file


def is_compressed(path: Path) -> bool:
    """Return whether a file is gzip or Zstandard; one that cannot be read is not."""
    try:
        with path.open("rb") as file:
            return file.read(len(ZSTANDARD)).startswith((GZIP, ZSTANDARD))
    except OSError:
        return False


def no_such_file(path: Path, name: str) -> DataError:
    """Return the error of a missing file, with what may have been meant, or where it was looked for."""
    from difflib import get_close_matches

    folder = path.parent
    if not folder.is_dir():
        return DataError(f"{name}: no such file; the folder {folder} does not exist")
    names = dict[str, str]()
    with suppress(OSError):
        names |= {other.stem: other.name for other in folder.iterdir()}
    close = get_close_matches(path.stem, names, n=1)
    if close:
        return DataError(f'{name}: no such file; did you mean "{folder / names[close[0]]}"?')
    return DataError(f"{name}: no such file; it was looked for in {folder.resolve()}")


def refuse(kind: str, name: str) -> None:
    """Refuse a file of a kind that holds no rows.

    Raises:
        DataError: it is of such a kind.
    """
    if kind:
        raise DataError(f"{name} is {kind}")


def numbered_lines(
    file: IO[bytes], name: str, most_bytes: int = MAX_ROW_BYTES
) -> Iterator[tuple[int, bytes]]:
    """Yield each line, its end included, with its number from 1; a byte order mark is taken away.

    Of a line of more than `most_bytes` only the first `most_bytes` + 1 are yielded, and the others are
    skipped unless the caller takes them from the file.

    Raises:
        DataError: the file cannot be read further, as where its compressed data is broken.
    """
    number = 0
    try:
        # a bytes file breaks at \\n alone, so U+2028 inside a JSON string ends nothing
        while line := file.readline(most_bytes + 1):
            number += 1
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            while line and not line.endswith(b"\n"):
                line = file.readline(BUFFER)
    except (OSError, EOFError, zlib.error) as error:
        raise cannot_read(name, number, error) from error


def too_large(most_bytes: int) -> str:
    """Say that a row is larger than is read."""
    return f"holds more than {most_bytes:,} bytes; --max-row-bytes allows more"


def not_utf8(error: UnicodeDecodeError) -> str:
    """Say which byte is not UTF-8."""
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x}); convert the file to UTF-8"


def cannot_read(name: str, number: int, error: Exception) -> DataError:
    """Say after which line a file cannot be read further."""
    where = f"after line {number}" if number else "from its beginning"
    return DataError(f"{name}: cannot be read {where}: {one_line(error)}")


def one_line(error: Exception) -> str:
    """Return the first line of what a library says is wrong."""
    return (str(error).strip("'\n") or repr(error)).splitlines()[0]
