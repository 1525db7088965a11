"""Patterns of files, in which a link that leads back up makes no file twice."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

EVERY_FOLDER = "**"


def matching_files(pattern: str) -> list[str]:
    """Return the files that match a pattern, sorted; each is named once, however many names lead to it."""
    files: dict[str, str] = {}
    for name in sorted(matching(pattern), key=lambda name: (name.count(os.sep), name)):
        if Path(name).is_file():
            files.setdefault(os.path.realpath(name), name)
    return sorted(files.values())


def matching(pattern: str) -> Iterator[str]:
    """Yield what matches a pattern as `glob.glob` does, but enter each folder of a `**` once."""
    parts = Path(pattern).parts
    if EVERY_FOLDER not in parts:
        yield from glob.glob(pattern)
        return
    first = parts.index(EVERY_FOLDER)
    rest = parts[first + 1 :] or ("*",)
    for base in glob.glob(os.path.join(*parts[:first])) if first else [""]:
        for folder in folders(base, set()):
            yield from matching(os.path.join(glob.escape(folder), *rest))


def folders(base: str, entered: set[tuple[int, int]]) -> Iterator[str]:
    """Yield a folder and those in it that are not hidden, by their own names before those of links."""
    try:
        found = os.stat(base or ".")
        entries = sorted(os.scandir(base or "."), key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError:
        return
    if (found.st_dev, found.st_ino) in entered:
        return
    entered.add((found.st_dev, found.st_ino))
    yield base
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith("."):
            yield from folders(os.path.join(base, entry.name), entered)
