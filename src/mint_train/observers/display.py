"""Which observer tells the user of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mint_train.observers.console import Console, FinalLines
from mint_train.observers.json_lines import JsonLines

DISPLAYS = {"plain": Console, "json": JsonLines, "quiet": FinalLines}


@contextmanager
def open_display(progress: str) -> Iterator[object]:
    """Yield the observer for a choice of `--progress`.

    Args:
        progress: a key of `DISPLAYS`, or "auto": live on a terminal, else plain.
    """
    if progress != "auto" or not sys.stdout.isatty():
        yield DISPLAYS.get(progress, Console)()
        return
    from mint_train.observers.live import LiveConsole

    live = LiveConsole()
    if live.terminal.is_dumb_terminal:
        yield Console()
        return
    try:
        yield live
    finally:
        live.stop()  # a run that breaks off must not leave a terminal without its cursor
