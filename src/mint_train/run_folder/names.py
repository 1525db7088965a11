"""Names of run folders and checkpoints."""

from __future__ import annotations

import re
from itertools import chain, count
from pathlib import Path
from time import strftime

from mint_train.errors import OptionError

LONGEST_STEM = 150


def file_name(loss: str) -> str:
    """Make a loss's name or expression fit for a folder and a checkpoint."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", loss).strip("-")


def make_unused_folder(loss: str) -> Path:
    """Make a new folder in `runs/`, named by the loss and the time; a second run in one second gets a number.

    Raises:
        OptionError: it cannot be made.
    """
    stem = f"{file_name(loss)[:LONGEST_STEM]}-{strftime('%Y-%m-%d-%H%M%S')}"
    for name in chain([stem], (f"{stem}-{number}" for number in count(2))):
        path = Path("runs", name)
        try:
            path.parent.mkdir(exist_ok=True)
            path.mkdir()
        except FileExistsError:
            if not path.parent.is_dir():
                raise OptionError("runs is not a folder; name another with --output") from None
            continue
        except OSError as error:
            raise OptionError(f"{path}: {error.strerror}; name another folder with --output") from error
        return path
    raise AssertionError
