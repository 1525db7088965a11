"""Names of run folders and checkpoints."""

from __future__ import annotations

import re
from itertools import chain, count
from pathlib import Path
from time import strftime


def file_name(loss: str) -> str:
    """Make a loss's name or expression fit for a folder and a checkpoint."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", loss).strip("-")


def unused_folder(loss: str) -> Path:
    """Name a new folder in `runs/` by the loss and the time; a second run in one second gets a number."""
    stem = f"{file_name(loss)}-{strftime('%Y-%m-%d-%H%M%S')}"
    names = chain([stem], (f"{stem}-{number}" for number in count(2)))
    return next(path for name in names if not (path := Path("runs", name)).exists())
