"""From what `--data` names to rows: files of any form, shards, standard input, the hub."""

from __future__ import annotations

import errno
import glob
import hashlib
import math
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import IO

from mint_train.errors import DataError, MintTrainError, unusable_text
from mint_train.rows.compression import BUFFER, MAX_ROW_BYTES, SUFFIXES, is_compressed, open_plain
from mint_train.rows.file_kinds import what_address
from mint_train.rows.given_rows import given_rows
from mint_train.rows.json_rows import read_json
from mint_train.rows.patterns import ROWS_IN, matching_files, patterns_in
from mint_train.rows.row import BadRow, Row
from mint_train.rows.tables import BUILDERS, DELIMITERS, as_json_line, read_csv, read_hub, read_table
from mint_train.settings.data_items import HUB, STANDARD_INPUT, DataItem

Signature = tuple[int, ...] | None
SHOWN = 40
"""How many characters of a text that is not a name are shown."""


@dataclass(frozen=True)
class DataSource:
    """Where rows come from. They can be read any number of times."""

    name: str
    """As the user wrote it."""
    shards: tuple[Path, ...]
    copy: IO[bytes] | None = None
    """A temporary file that holds what can be read only once; it goes when this object does."""
    unit: str = "line"
    most_bytes: int = MAX_ROW_BYTES
    """Bytes of a row above which it is a bad one."""
    weight: float | None = None
    """Its share of an epoch, relative to those of other sources."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The columns that this source alone has under other names."""
    opened: Sequence[Signature] = field(init=False, repr=False, compare=False)
    """The state of each file when the source was opened."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "opened", [signature(shard) for shard in self.shards])

    def __str__(self) -> str:
        return self.name

    @property
    def parts(self) -> tuple[DataSource, ...]:
        """The source itself, as several of them are the parts of a mixture."""
        return (self,)

    def paths(self) -> list[str]:
        """Return the path that the rows of each file name as where they stand."""
        return [self.name] if self.copy is not None else [str(shard) for shard in self.shards]

    def rows(self) -> Iterator[Row | BadRow]:
        """Read all rows in order, shard by shard; a bad one is yielded too, so that nothing is lost unseen.

        Raises:
            DataError: a shard is missing, unreadable or broken beyond its rows; the data has no rows.
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
            yield from read_file(shard, str(shard), self.most_bytes)
            return
        for row in read_file(shard, self.name, self.most_bytes):
            yield replace(row, source=replace(row.source, unit=self.unit))

    @property
    def size(self) -> int:
        """Bytes of all files as they were opened; one that is missing has none."""
        return sum(state[2] for state in self.opened if state is not None)

    def text_bytes(self) -> float:
        """Return the size of the files where all exist and hold rows as plain text; infinite otherwise."""
        packed = any(shard.suffix in BUILDERS or is_compressed(shard) for shard in self.shards)
        return math.inf if packed or None in self.opened else self.size

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
        return digests[0] if len(digests) == 1 else joined_digest(digests)

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


def open_data(name: str | Path, most_bytes: int = MAX_ROW_BYTES) -> DataSource:
    """Find what `--data` names; what can be read only once is read now, into a temporary file.

    Args:
        name: a file, a pattern of files (`data/*.jsonl.gz`), `-` for standard input, or a data set on the
            hub: `hf:org/name`, `hf:org/name/config`, each perhaps with `:split`; `hf-stream:` streams it.
        most_bytes: the size of a row above which it is a bad one.

    Raises:
        DataError: the file is missing or unreadable.
    """
    return replace(find_source(str(name)), most_bytes=most_bytes)


def find_source(text: str) -> DataSource:
    """Find what `--data` names; as `open_data`, whatever the size of a row."""
    if problem := unusable_text(text):
        raise DataError(problem)
    if text == STANDARD_INPUT:
        return copy_standard_input()
    for prefix, streaming in HUB.items():
        if text.startswith(prefix):
            return copy_hub(text, text.removeprefix(prefix), streaming=streaming)
    if problem := what_address(text):
        raise DataError(f"{text} {problem}")
    path = Path(text)
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            start = " ".join(text[:SHOWN].split())
            raise DataError(
                f"{start} ...: {error.strerror}; give a file, or from Python rows as a list of dictionaries"
            ) from error
    if path.is_dir():
        raise DataError(f"{text}: Is a directory; {advice_for(text)}")
    if path.is_fifo():
        with path.open("rb") as pipe:
            return copy_stream(text, pipe)
    if path.is_char_device() or path.is_block_device():
        raise DataError(f"{text} is a device, not a file of rows")
    if path.exists() or glob.escape(text) == text:
        return DataSource(text, (path,))
    shards = tuple(Path(found) for found in matching_files(text))
    if not shards:
        raise DataError(f"{text}: no file matches")
    for problem in filter(None, (unusable_text(str(shard)) for shard in shards)):
        raise DataError(problem)
    return DataSource(text, shards)


def advice_for(folder: str) -> str:
    """Say what to give in place of a folder, by what lies in it."""
    patterns = " or ".join(map(shlex.quote, patterns_in(folder)))
    files = patterns or f"there is none that ends in {', '.join(ROWS_IN)}"
    return f"name its files ({files}), or a data set ({shlex.quote(f'hf:{folder}')})"


def copy_standard_input() -> DataSource:
    """Copy standard input to a temporary file.

    Raises:
        DataError: it is a terminal.
    """
    if sys.stdin.isatty():
        raise DataError("--data -: standard input is a terminal; pipe the rows in")
    return copy_stream("standard input", sys.stdin.buffer)


def copy_stream(name: str, stream: IO[bytes]) -> DataSource:
    """Copy what can be read only once to a temporary file.

    Raises:
        MintTrainError: it cannot be read, or the disk refuses.
    """
    return copy_pieces(name, iter(partial(stream.read, BUFFER), b""))


def copy_pieces(name: str, pieces: Iterable[bytes], unit: str = "line") -> DataSource:
    """Write what can be read only once to a temporary file, which goes when the source does.

    Args:
        name: what an error calls it.
        pieces: its bytes.
        unit: what a row's number counts.

    Raises:
        MintTrainError: it cannot be read, or the disk refuses.
    """
    copy = tempfile.NamedTemporaryFile(prefix="mint-train-")  # noqa: SIM115 - the source keeps it
    try:
        copy.writelines(pieces)
        copy.flush()
    except OSError as error:
        raise MintTrainError(
            f"{name} cannot be copied to {tempfile.gettempdir()}: {error.strerror or error}; TMPDIR names "
            "another folder"
        ) from error
    return DataSource(name, (Path(copy.name),), copy, unit)


def waits_for_writer(name: str | Path | None) -> bool:
    """Return whether `--data` names a pipe, which is read once, to its end."""
    try:
        return name is not None and Path(name).is_fifo()
    except OSError:  # text too long for a name, which is refused where it is opened
        return False


def copy_hub(name: str, reference: str, *, streaming: bool) -> DataSource:
    """Copy a data set of the hub to a temporary file of JSON Lines.

    Raises:
        DataError: it cannot be reached or read.
    """
    lines = map(as_json_line, read_hub(name, reference, streaming=streaming))
    return copy_pieces(name, lines, unit="row")


def open_item(item: DataItem, most_bytes: int = MAX_ROW_BYTES) -> DataSource:
    """Find one source of the settings; rows that a program gives are read now, once.

    Raises:
        DataError: the file is missing or unreadable, or a row is not an object.
    """
    if item.rows is None:
        source = open_data(item.name, most_bytes)
    else:
        source = copy_pieces(item.name, given_rows(item.rows, item.name), unit="row")
    return replace(source, most_bytes=most_bytes, weight=item.weight, columns=item.columns)


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


def read_file(path: Path, name: str, most_bytes: int) -> Iterator[Row | BadRow]:
    """Read one file: CSV, Parquet and Arrow by its suffix, JSON Lines or a JSON array under any other."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in SUFFIXES]
    suffix = suffixes[-1] if suffixes else ""
    if suffix in BUILDERS:
        yield from read_table(path, BUILDERS[suffix], name, most_bytes)
        return
    with open_plain(path, name) as file:
        if suffix in DELIMITERS:
            yield from read_csv(file, name, DELIMITERS[suffix], most_bytes)
        else:
            yield from read_json(file, name, most_bytes)


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


def joined_digest(digests: Iterable[str]) -> str:
    """Return the SHA-256 of digests in order, hexadecimal."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


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
