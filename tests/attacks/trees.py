"""What a folder holds, to compare it before and after an attack."""

from __future__ import annotations

import os
from pathlib import Path


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """Map each path below a folder to its content; None for a folder, the target for a link."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = None
    return {name: content for name, content in found.items() if Path(name).name != ".lock"}


def files(found: dict[str, bytes | str | None]) -> dict[str, bytes | str]:
    """Return what a tree holds beside folders."""
    return {name: content for name, content in found.items() if content is not None}
