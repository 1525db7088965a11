"""Patterns of files, in which a link that leads back up makes no file twice."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mint_train.rows.compression import SUFFIXES
from mint_train.rows.tables import BUILDERS, DELIMITERS

EVERY_FOLDER = "**"
ROWS_IN = (".jsonl", ".json", ".ndjson", *BUILDERS, *DELIMITERS)
"""Suffixes of the files that rows are read from."""
MOST_NAMES = 10_000
"""Names of a folder that are looked at."""


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


def patterns_in(folder: str) -> list[str]:
    """Return patterns of the files of rows in a folder, or in those right below it; the most files first."""
    base = glob.escape(folder)
    for level in ("*", os.path.join("*", "*")):
        names = islice(glob.iglob(os.path.join(base, level)), MOST_NAMES)
        suffixes = Counter(suffix for name in names if (suffix := suffix_of(name)))
        if suffixes:
            return [os.path.join(base, f"{level}{suffix}") for suffix, _ in suffixes.most_common()]
    return []


def suffix_of(name: str) -> str:
    """Return the suffix of a file of rows, that of its compression included; nothing for other files."""
    path = Path(name)
    packed = path.suffix if path.suffix in SUFFIXES else ""
    inner = Path(path.stem).suffix if packed else path.suffix
    return f"{inner}{packed}" if inner in ROWS_IN else ""
