"""From what `--data` names to rows: files of any form, shards, standard input, the hub."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO

from mint_train.errors import DataError
from mint_train.rows.compression import SUFFIXES, open_plain
from mint_train.rows.json_rows import read_json
from mint_train.rows.row import BadRow, Row
from mint_train.rows.tables import BUILDERS, DELIMITERS, as_json_line, read_csv, read_hub, read_table

Signature = tuple[int, ...] | None
STANDARD_INPUT = "-"
HUB = {"hf:": False, "hf-stream:": True}
"""Prefixes of data sets on the hub: whether they are streamed."""


@dataclass(frozen=True)
class DataSource:
    """Where rows come from. They can be read any number of times."""

    name: str
    """As the user wrote it."""
    shards: tuple[Path, ...]
    copy: IO[bytes] | None = None
    """A temporary file that holds what can be read only once; it goes when this object does."""
    unit: str = "line"
    opened: Sequence[Signature] = field(init=False, repr=False, compare=False)
    """The state of each file when the source was opened."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "opened", [signature(shard) for shard in self.shards])

    def __str__(self) -> str:
        return self.name

    def rows(self) -> Iterator[Row | BadRow]:
        """Read all rows in order, shard by shard; a bad one is yielded too, so that nothing is lost unseen.

        Raises:
            DataError: a shard is missing, unreadable or broken beyond its rows; there is no row at all.
        """
        empty = True
        for shard in self.shards:
            for row in self._read(shard):
                empty = False
                yield row
        if empty:
            raise DataError(
                f"{self.name}: {'they hold' if len(self.shards) > 1 else 'the file holds'} no rows"
            )

    def _read(self, shard: Path) -> Iterator[Row | BadRow]:
        if self.copy is None:
            yield from read_file(shard, str(shard))
            return
        for row in read_file(shard, self.name):
            yield replace(row, source=replace(row.source, unit=self.unit))

    def fingerprint(self) -> str:
        """Return the SHA-256 of the file as it was at the first call, hexadecimal.

        Of several files it is that of their own ones in order.

        Raises:
            DataError: a file cannot be read.
        """
        return self.first_digest

    @cached_property
    def first_digest(self) -> str:
        """The SHA-256 at the first use."""
        return self.digest()

    def digest(self) -> str:
        """Compute the SHA-256 of what the files hold now."""
        digests = [file_digest(shard) for shard in self.shards]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def check_unchanged(self, *, content: bool = False) -> None:
        """Refuse data that has been written to since it was opened, even if its old content is back.

        Args:
            content: read the files again, for file systems that keep no exact times.

        Raises:
            DataError: a file has changed.
        """
        for shard, before in zip(self.shards, self.opened, strict=True):
            if signature(shard) != before:
                raise changed(str(shard))
        if content and self.digest() != self.fingerprint():
            raise changed(self.name)


def open_data(name: str | Path) -> DataSource:
    """Find what `--data` names; standard input and the hub are read now, once, into a temporary file.

    Args:
        name: a file, a pattern of files (`data/*.jsonl.gz`), `-` for standard input, or a data set on the
            hub: `hf:org/name`, `hf:org/name/config`, each perhaps with `:split`; `hf-stream:` streams it.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    text = str(name)
    if text == STANDARD_INPUT:
        return copy_standard_input()
    for prefix, streaming in HUB.items():
        if text.startswith(prefix):
            return copy_hub(text, text.removeprefix(prefix), streaming=streaming)
    path = Path(text)
    if path.is_dir():
        raise DataError(
            f"{text}: Is a directory; name its files (`{text}/*.jsonl`), or a data set (`hf:{text}`)"
        )
    if path.exists() or glob.escape(text) == text:
        return DataSource(text, (path,))
    shards = tuple(Path(found) for found in sorted(glob.glob(text, recursive=True)) if Path(found).is_file())
    if not shards:
        raise DataError(f"{text}: no file matches")
    return DataSource(text, shards)


def copy_standard_input() -> DataSource:
    """Copy standard input to a temporary file.

    Raises:
        DataError: it is a terminal.
    """
    if sys.stdin.isatty():
        raise DataError("--data -: standard input is a terminal; pipe the rows in")
    copy = tempfile.NamedTemporaryFile(prefix="mint-train-")  # noqa: SIM115 - the source keeps it
    shutil.copyfileobj(sys.stdin.buffer, copy)
    copy.flush()
    return DataSource("standard input", (Path(copy.name),), copy)


def copy_hub(name: str, reference: str, *, streaming: bool) -> DataSource:
    """Copy a data set of the hub to a temporary file of JSON Lines.

    Raises:
        DataError: it cannot be reached or read.
    """
    copy = tempfile.NamedTemporaryFile(prefix="mint-train-")  # noqa: SIM115 - the source keeps it
    for values in read_hub(name, reference, streaming=streaming):
        copy.write(as_json_line(values))
    copy.flush()
    return DataSource(name, (Path(copy.name),), copy, "row")


def signature(path: Path) -> Signature:
    """Return what changes when a file is written to or replaced; None where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def changed(name: str) -> DataError:
    """Return the error for data that is not what was checked."""
    return DataError(f"{name} was changed while it was read; start again once it stays as it is")


def read_file(path: Path, name: str) -> Iterator[Row | BadRow]:
    """Read one file: CSV, Parquet and Arrow by its suffix, JSON Lines or a JSON array under any other."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in SUFFIXES]
    suffix = suffixes[-1] if suffixes else ""
    if suffix in BUILDERS:
        yield from read_table(path, BUILDERS[suffix], name)
        return
    with open_plain(path, name) as file:
        if suffix in DELIMITERS:
            yield from read_csv(file, name, DELIMITERS[suffix])
        else:
            yield from read_json(file, name)


def read_rows(data: str | Path) -> list[Row]:
    """Read all rows into memory.

    Raises:
        DataError: a file or a row of it cannot be read, with the line.
    """
    rows = []
    for row in open_data(data).rows():
        if isinstance(row, BadRow):
            raise DataError(str(row))
        rows.append(row)
    return rows


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def absolute_name(name: str) -> str:
    """Return what `--data` names so that it stands wherever a run is resumed from."""
    if name == STANDARD_INPUT or name.startswith(tuple(HUB)):
        return name
    return os.path.abspath(name)
