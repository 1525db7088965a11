"""The most that the cache of tokenised data takes: what was used longest ago is removed."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mint_train.errors import UserError
from mint_train.groups.checksums import CHECKSUMS_FILE

LIMIT_VARIABLE = "MINT_TRAIN_CACHE_GB"
DEFAULT_GB = 100.0
SHARED_FOLDERS = ("references", "readings")
"""Folders of the cache whose entries are removed one by one; others in it may be a plugin's."""


def limit_bytes() -> float:
    """Return the most bytes that the cache may take: MINT_TRAIN_CACHE_GB, else 100 GB.

    Raises:
        UserError: the variable is not a number of gigabytes.
    """
    given = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_GB)
    with suppress(ValueError):
        limit = float(given) * 1e9
        if limit >= 0 and not math.isnan(limit):
            return limit
    raise UserError(f"{LIMIT_VARIABLE}={given} is not a number of gigabytes, such as 20")


def note_use(path: Path) -> None:
    """Note that an entry is used now."""
    with suppress(OSError):  # a cache of somebody else's that may only be read
        os.utime(path)


def remove_oldest(cache: Path, limit: float, used: Path) -> None:
    """Remove entries, those that were used longest ago first, until the others fit the limit.

    A run that reads an entry keeps its open files.

    Args:
        cache: the folder of the cache.
        limit: bytes.
        used: an entry that stays, whatever its size.
    """
    found = sorted(entries(cache))
    total = sum(size for _, size, _ in found)
    for _, size, path in found:
        if total <= limit:
            return
        if path != used:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            total -= size


def entries(cache: Path) -> Iterator[tuple[float, int, Path]]:
    """Yield when each entry was last used, and its bytes."""
    shared = (path for name in SHARED_FOLDERS for path in (cache / name).glob("*"))
    tokenised = (path.parent for path in cache.glob(f"*/{CHECKSUMS_FILE}"))
    for path in (*tokenised, *shared):
        with suppress(OSError):  # another run may remove it meanwhile
            files = [*path.iterdir()] if path.is_dir() else [path]
            yield path.stat().st_mtime, sum(file.stat().st_size for file in files), path
