"""What a run shows on a terminal: a bar with the latest figures, with step lines above it."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from rich.console import ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from mint_train.observers.console import ScreenConsole, shown_metrics
from mint_train.observers.screen import Screen
from mint_train.observers.terminal import PROGRAM, echo_problem, wrapped
from mint_train.plugins.hookspecs import hookimpl
from mint_train.run_folder.records import RunRecord, RunResult, StepRecord

SHOWN_STEPS = 100
"""Roughly how many step lines a run leaves on the screen; the bar shows every step."""
RECENT_STEPS = 50
"""Steps over which speed and time left are measured."""


class RoomForEcho:
    """Something shown so narrow that the terminal's echo of Ctrl-C behind it does not begin another line."""

    def __init__(self, shown: RenderableType) -> None:
        self.shown = shown

    def __rich_console__(self, terminal: Any, options: ConsoleOptions) -> RenderResult:
        """Render it in less than the terminal's width."""
        yield from terminal.render(self.shown, options.update_width(options.max_width - len("^C") - 1))


class StepBar(Progress):
    """A bar of steps below a line of figures."""

    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the figures, cut to the terminal's width, then the bar."""
        yield Text(self.figures, no_wrap=True, overflow="ellipsis")
        yield from map(RoomForEcho, super().get_renderables())


class LiveConsole(ScreenConsole):
    """Prints what `Console` prints above a live bar; in a long run not the line of every step."""

    def __init__(self) -> None:
        super().__init__(self.print_above)
        self.terminal = Screen()
        self.bar = StepBar(
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[speed]} tokens/s"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]} left"),
            console=self.terminal,
            expand=True,
            transient=True,
            refresh_per_second=4,
        )
        self.task = self.bar.add_task("steps", start=False, total=None, speed="-", left="-")
        self.recent: deque[StepRecord] = deque(maxlen=RECENT_STEPS)
        self.steps = 0

    def print_above(self, text: str) -> None:
        """Print a line above the bar, wrapped on words, but not coloured or taken for markup."""
        self.terminal.out(wrapped(text, self.terminal.width), highlight=False)

    @hookimpl
    def notice(self, text: str, warning: bool) -> None:
        """Print a line above the bar; a warning too, unless standard error goes elsewhere."""
        if warning and not sys.stderr.isatty():
            echo_problem(text)
        else:
            self.print_above(f"{PROGRAM}: {text}" if warning else text)

    def stop(self) -> None:
        """Remove the bar and restore the terminal; safe to call twice."""
        self.bar.stop()

    @hookimpl
    def run_started(self, run: RunRecord) -> None:
        """Show the bar."""
        super().run_started(run)
        self.steps = run.steps
        self.bar.update(self.task, total=run.steps)
        self.bar.start_task(self.task)
        self.bar.start()

    @hookimpl
    def step_finished(self, step: StepRecord) -> None:
        """Move the bar, and print the line of each step that is shown."""
        self.recent.append(step)
        seconds = sum(record.seconds for record in self.recent)
        left = (self.steps - step.step) * seconds / len(self.recent)
        self.bar.figures = shown_metrics(step, self.formats)
        self.bar.update(
            self.task,
            completed=step.step,
            speed=f"{sum(record.tokens for record in self.recent) / max(seconds, 1e-9):,.0f}",
            left=str(timedelta(seconds=round(left))),
        )
        every = -(-self.steps // SHOWN_STEPS)
        if step.step in (1, self.steps) or step.step % every == 0:
            super().step_finished(step)
            self.bar.refresh()  # otherwise only at the next of four times a second

    @hookimpl
    def run_finished(self, result: RunResult) -> None:
        """Remove the bar, then print where the results are."""
        self.stop()
        super().run_finished(result)
