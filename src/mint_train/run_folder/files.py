"""Files that survive a crash: written to a temp file and renamed, or appended to by whole lines."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mint_train.errors import MintTrainError, UserError
from mint_train.run_folder.lines import what_is_wrong


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temp file, which replaces the file atomically once it is whole and on the disk.

    Raises:
        MintTrainError: the file cannot be written; the old file stays.
    """
    beside = drawn_beside(path)
    try:
        beside.touch(exist_ok=False)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield beside
        sync_file(beside)
        beside.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        beside.unlink(missing_ok=True)


class Place:
    """A file or folder that stays where it is when the program takes another current folder."""

    def __init__(self, path: Path) -> None:
        """Take a path as the user wrote it."""
        self._written, self._absolute = path, path.absolute()

    @property
    def path(self) -> Path:
        """The path as it was written, or the whole one once the current folder is another."""
        try:
            return self._written if self._written.absolute() == self._absolute else self._absolute
        except FileNotFoundError:  # the current folder has been removed
            return self._absolute


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def drawn_beside(path: Path, kind: str = "part") -> Path:
    """Draw a name for a temp file or folder beside a path; nobody else's file has it."""
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}.{kind}")


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically: a crash leaves the old one or the new one, never a part.

    Raises:
        MintTrainError: the file cannot be written; the old file stays.
    """
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def make_parent(path: Path) -> None:
    """Create the folder that a file goes to.

    Raises:
        MintTrainError: it cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse what does not fit on a folder's disk, before it fills it.

    Args:
        folder: an existing folder.
        needed: bytes.
        what: what is to be written, for the message.

    Raises:
        UserError: with what is needed and what is free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        free_and_needed = f"{free / 1e6:,.1f} MB free, and {what} needs {needed / 1e6:,.1f} MB"
        raise UserError(f"the disk of {folder.parent} has {free_and_needed}")


def copy_whole(source: Path, path: Path) -> None:
    """Copy a file, and create the folder that it goes to.

    Raises:
        MintTrainError: the file cannot be written.
    """
    make_parent(path)
    with whole_file(path) as beside:
        shutil.copyfile(source, beside)


def append_line(path: Path, value: dict[str, Any], *, durable: bool = False) -> None:
    """Append one JSON line, atomically.

    Args:
        path: a JSON Lines file; created if it does not exist.
        value: anything that `json` can write, without NaN or infinity.
        durable: wait until the line is on the disk, so that it survives a power cut.

    Raises:
        MintTrainError: the line cannot be written; the file keeps its content.
    """
    line = (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab", buffering=0) as file:
            written = file.write(line)
            if written != len(line):
                file.write(line[written:])  # writes the rest, or raises the reason why it could not
            if durable:
                os.fsync(file.fileno())
    except OSError as error:
        if path.exists():
            os.truncate(path, before)
        raise cannot_write(path, error) from error


def sync_file(path: Path) -> None:
    """Wait until a file, if it exists, is on the disk."""
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def json_lines(path: Path, *, torn: bool = False) -> list[Any]:
    """Return the values of a JSON Lines file.

    Args:
        path: the file.
        torn: leave out a last line without a line feed, which was being appended when a run was killed.

    Raises:
        UserError: it cannot be read, or a line is not JSON.
    """
    try:
        # not splitlines(): a text may hold other line separators, such as U+2028
        *lines, last = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is broken: {error}") from error
    whole = [*lines, *([last] if last and not torn else [])]
    return [json_line(path, number, line) for number, line in enumerate(whole, start=1)]


def json_line(path: Path, number: int, line: str) -> Any:
    """Return the value of a line of a JSON Lines file.

    Raises:
        UserError: it is not JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        problem = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise UserError(f"{path} is broken: line {number}: {problem}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a JSON Lines file of steps; a torn last line is left out.

    Raises:
        UserError: a line is broken, has no step, or is not as this program writes it.
    """
    if not path.exists():
        return []
    lines = json_lines(path, torn=True)
    for problem in filter(None, (what_is_wrong(path.name, line) for line in lines)):
        raise UserError(f"{path} is broken: {problem}")
    return lines


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON Lines file atomically."""
    write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON Lines file atomically, and create its folder.

    Raises:
        MintTrainError: the file cannot be written.
    """
    make_parent(path)
    write_lines(path, rows)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temp folder, which takes the folder's name once it is whole and on the disk.

    What the new folder has no file of, stays from the old one.

    Raises:
        MintTrainError: the folder cannot be written; the old folder stays.
    """
    beside, old = drawn_beside(path), drawn_beside(path, "old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        yield beside
        for file in files_for_all(beside):
            sync_file(file)
        if path.exists() and any(path.iterdir()):
            path.rename(old)
        beside.rename(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if old.exists():
            leave_old(old, path)


def files_for_all(folder: Path) -> list[Path]:
    """Return the files of a folder that a library wrote, which the umask alone now keeps from others."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for file in files:  # safetensors lets nobody else read what it writes
        file.chmod(folder.stat().st_mode & 0o666)
    return files


def leave_old(old: Path, path: Path) -> None:
    """Give a replaced folder its name back, or move what the new one lacks into that, and remove it."""
    if not path.exists():
        old.rename(path)
        return
    for entry in old.iterdir():
        if not (path / entry.name).exists():
            entry.rename(path / entry.name)
    shutil.rmtree(old, ignore_errors=True)


def cannot_write(path: Path, error: OSError) -> MintTrainError:
    """Return the error that says that a file cannot be written, and why."""
    return MintTrainError(f"{path} cannot be written: {error.strerror or error}")


def digests_of_files(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each file that an option names, by its name."""
    return {str(name): file_sha256(Path(name)) for name in options.values() if is_file(name)}


def is_file(value: object) -> bool:
    """Return whether the value of an option is the path of a file."""
    try:
        return isinstance(value, str | Path) and Path(value).is_file()
    except (OSError, ValueError):  # a text too long for a path, say
        return False
