"""The progress of sampling and judging: bars on a terminal, else a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mint_train.observers.screen import Screen
from mint_train.observers.terminal import echo

PARTS = 10
"""Lines of progress where the output is not a terminal."""

Progress = Callable[[str, int, int], None]
"""Called with what is done, such as "sampled", for how many prompts it is done, and how many there are."""


@contextmanager
def silent_progress() -> Iterator[Progress]:
    """Yield what shows nothing."""
    yield lambda *_: None


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """Yield what shows progress on standard error: bars on a terminal, else a line now and then."""
    if not sys.stderr.isatty():
        said: dict[str, int] = {}

        def tell(what: str, done: int, total: int) -> None:
            part = done * PARTS // max(1, total)
            if said.get(what) != part:
                said[what] = part
                echo(f"{what.capitalize()}: {done:,} of {total:,} prompts", err=True)

        yield tell
        return
    from rich.progress import Progress as Bars

    with Bars(console=Screen(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what.capitalize(), total=total)
            bars.update(tasks[what], completed=done)

        yield show
