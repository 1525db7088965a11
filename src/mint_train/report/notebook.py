"""What a notebook shows of a run: how it stands, its held-out figures, its curves."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from mint_train.errors import MintTrainError, counted
from mint_train.report.comparison import html_table
from mint_train.report.curves import LEARNING_RATE, SPEED, read_run
from mint_train.run_folder.metric import with_interval
from mint_train.run_folder.records import Evaluation, RunResult

STYLE = (
    "--ink:currentColor;--grid:#8886;--run0:#2a86c8;"
    "display:grid;grid-template-columns:repeat(auto-fit,minmax(16rem,1fr));gap:1rem"
)
"""Colours that can be read on a light and on a dark page: a notebook does not say which it has."""


class ShownResult(RunResult):
    """How a run ended, as a notebook shows it."""

    def _repr_html_(self) -> str:
        return run_html(self.folder, self.evaluations)


def run_html(folder: Path, evaluations: Sequence[Evaluation]) -> str:
    """Return a run as HTML; without matplotlib, or before the first step, it has no curves."""
    try:
        run = read_run(folder, folder.name)
    except MintTrainError as error:
        return f"<p>{escape(str(error))}</p>"
    described = run.description
    steps = f"{run.lines[-1]['step']} of {counted(described.steps, 'step')}"
    problem = f": {described.problem}" if described.problem else ""
    head = f"{folder}: {described.loss}, {described.status}, {steps}{problem}"
    parts = [f"<p>{escape(head)}</p>", held_out_html(evaluations)]
    try:
        from mint_train.report.charts import axis_label, drawn_metrics, svg
    except ModuleNotFoundError:
        return "".join(parts)
    names = [name for name in drawn_metrics([run]) if name not in (LEARNING_RATE, SPEED)]
    charts = [
        f"<figure style='margin:0'><figcaption>{escape(axis_label([run], name))}</figcaption>"
        f"{svg([run], name)}</figure>"
        for name in names
    ]
    return "".join([*parts, f"<div style='{STYLE}'>", *charts, "</div>"])


def held_out_html(evaluations: Sequence[Evaluation]) -> str:
    """Return a table for each held-out set: its figures before the first step and at the end."""
    tables = []
    for name in dict.fromkeys(each.held_out for each in evaluations):
        own = [each for each in evaluations if each.held_out == name]
        first, last = own[0], own[-1]
        header = [name or "held out", f"after step {first.step}", f"after step {last.step}"]
        rows = [[metric, figure(first, metric), figure(last, metric)] for metric in last.metrics]
        tables.append(html_table("", header, rows))
    return "".join(tables)


def figure(evaluation: Evaluation, metric: str) -> str:
    """Format a metric with its interval."""
    if metric not in evaluation.metrics:
        return ""
    return with_interval(metric, ".4g", evaluation.metrics, evaluation.intervals)
