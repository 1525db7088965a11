"""Checksums of the files that are trained from: a flipped bit is noticed before it trains other numbers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

CHECKSUMS_FILE = "checksums.json"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Write down the checksum of each file in a folder."""
    sums = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    (folder / CHECKSUMS_FILE).write_text(json.dumps(sums), encoding="utf-8")


def is_whole(folder: Path, *names: str) -> bool:
    """Return whether files of a folder are as they were when their checksums were written down."""
    try:
        sums = json.loads((folder / CHECKSUMS_FILE).read_text(encoding="utf-8"))
        return all(sums[name] == file_sha256(folder / name) for name in names)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False
