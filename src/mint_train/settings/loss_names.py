"""What a loss is called: an installed name, or a path to a file."""

from __future__ import annotations

from pathlib import Path


def is_loss_file(name: str) -> bool:
    """Return whether `name` is a path to a file (`./my_loss.py`, `losses/mine.py`), not an installed loss."""
    return name.endswith(".py") or "/" in name or "\\" in name


def loss_label(name: str) -> str:
    """Return the name of a loss for folders and variables: a file's stem, or the name itself."""
    return Path(name).stem if is_loss_file(name) else name
