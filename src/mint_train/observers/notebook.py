"""What a run shows in a notebook: the lines of its progress, and a bar that each step moves."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from html import escape
from importlib import import_module
from typing import Any

from mint_train.observers.console import ScreenConsole, shown_metrics
from mint_train.plugins.hookspecs import hookimpl
from mint_train.run_folder.records import RunRecord, RunResult, StepRecord

SHOWN_STEPS = 20
"""Roughly how many step lines a run leaves in a cell; the bar shows every step."""
PAUSE_SECONDS = 0.25
"""Between two movements of the bar."""


def in_notebook() -> bool:
    """Return whether this program runs in a kernel, whose cells show HTML."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def show_in_cell() -> Callable[[str], None]:
    """Return a function that shows HTML in the current cell, each time in place of what it showed before."""
    shown: Any = import_module("IPython.display")
    handle = shown.display(shown.HTML(""), display_id=True)

    def show(html: str) -> None:
        handle.update(shown.HTML(html))

    return show


class NotebookConsole(ScreenConsole):
    """Prints what `Console` prints, in a long run not the line of every step, and moves a bar."""

    def __init__(self, open_cell: Callable[[], Callable[[str], None]] = show_in_cell) -> None:
        """Take what opens a place for HTML, once there is something to show."""
        super().__init__()
        self.open_cell = open_cell
        self.show: Callable[[str], None] = lambda _: None
        self.steps = 0
        self.moved = 0.0

    @hookimpl
    def run_started(self, run: RunRecord) -> None:
        """Show the bar."""
        super().run_started(run)
        self.steps = run.steps
        self.show = self.open_cell()
        self.show(bar(0, run.steps, ""))

    @hookimpl
    def step_finished(self, step: StepRecord) -> None:
        """Move the bar, and print the line of each step that is shown."""
        now = time.monotonic()
        if step.step == self.steps or now - self.moved > PAUSE_SECONDS:
            self.moved = now
            self.show(bar(step.step, self.steps, shown_metrics(step, self.formats)))
        if step.step in (1, self.steps) or step.step % -(-self.steps // SHOWN_STEPS) == 0:
            super().step_finished(step)

    @hookimpl
    def run_finished(self, result: RunResult) -> None:
        """Remove the bar, then print where the results are."""
        self.show("")
        super().run_finished(result)


def bar(step: int, steps: int, figures: str) -> str:
    """Return a bar of steps with the latest figures as HTML."""
    label = f"{step:,} of {steps:,} steps"
    return f'<progress value="{step}" max="{steps}"></progress> {label} <code>{escape(figures)}</code>'
