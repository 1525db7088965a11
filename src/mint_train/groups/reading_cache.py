"""What reading all rows of a file found, kept on disk: the next run on them need not read them first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mint_train.errors import MintTrainError
from mint_train.groups.cache_bound import note_use
from mint_train.groups.token_cache import makers_of_datums
from mint_train.losses.loss import Loss
from mint_train.rows.readers import DataSource
from mint_train.run_folder.files import make_parent, write_whole
from mint_train.settings.cache import cache_folder

FOLDER = "readings"
LEAST_BYTES = 2**22
"""A smaller file is read anew: that takes a fraction of a second."""


def reading_file(data: DataSource, loss: Loss, columns: Mapping[str, str], on_bad_row: str) -> Path | None:
    """Return where the reading of a source is kept, by all that decides it; None where it is read anew.

    Raises:
        DataError: a file cannot be read.
    """
    if data.size < LEAST_BYTES:
        return None
    parts = {
        # bad rows name their file
        "source": (str(data), data.paths(), data.unit, data.fingerprint()),
        "max_row_bytes": data.most_bytes,
        "columns": dict(columns),
        "on_bad_row": on_bad_row,
        "makers": makers_of_datums(loss),
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    with suppress(MintTrainError):  # where nothing can be kept, the token cache says so
        return cache_folder() / FOLDER / f"{key}.json"
    return None


def choice_file(readings: Sequence[Path], share: float) -> Path:
    """Return where the choice of the examples that are held out is kept, given where their readings are."""
    parts = [*(path.name for path in readings), repr(share)]
    return readings[0].with_name(f"{hashlib.sha256(' '.join(parts).encode()).hexdigest()}.json")


def read_kept(path: Path) -> dict[str, Any] | None:
    """Return what was kept, or None where nothing was, or not as it was written."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["sha256"] == checksum(kept["reading"]):
            note_use(path)
            return dict(kept["reading"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    return None


def keep(path: Path, reading: Mapping[str, Any]) -> None:
    """Keep what was found; a disk that refuses, or a value that JSON does not have, costs time alone."""
    with suppress(MintTrainError, TypeError):
        text = json.dumps({"sha256": checksum(reading), "reading": reading})
        make_parent(path)
        write_whole(path, text)


def checksum(reading: Any) -> str:
    """Return the SHA-256 of a reading."""
    return hashlib.sha256(json.dumps(reading, sort_keys=True).encode()).hexdigest()
