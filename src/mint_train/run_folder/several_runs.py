"""A folder of several runs, such as rounds, where one run is asked for."""

from __future__ import annotations

import os
from pathlib import Path

from mint_train.run_folder.parts import RUN_FILE


def name_one(folder: Path) -> str:
    """Return what a message adds about a folder that holds runs and is not one itself, or nothing."""
    inside = folder.glob(f"*/{RUN_FILE}") if os.path.isdir(folder) else ()  # whatever its name
    runs = sorted(found.parent for found in inside)
    return f"; it holds runs: name one of them, such as {runs[-1]}" if runs else ""
