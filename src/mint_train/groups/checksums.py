"""Checksums of the files that are trained from: a flipped bit is noticed before it trains other numbers."""

from __future__ import annotations

import json
from pathlib import Path

from mint_train.run_folder.files import file_sha256

CHECKSUMS_FILE = "checksums.json"


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
