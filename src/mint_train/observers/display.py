"""Which observer shows a run to its user."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mint_train.observers.console import Console, FinalLines
from mint_train.observers.json_lines import JsonLines
from mint_train.observers.notebook import NotebookConsole, in_notebook

DISPLAYS = {"plain": Console, "json": JsonLines, "quiet": FinalLines, "silent": object}


@contextmanager
def open_display(progress: str) -> Iterator[object]:
    """Yield the observer that a choice of `--progress` names.

    Args:
        progress: a key of `DISPLAYS`, or "auto": live on a terminal and in a notebook, otherwise plain.
    """
    if progress == "auto" and in_notebook():
        yield NotebookConsole()
        return
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
        live.stop()  # an aborted run must not leave the terminal without its cursor
