"""What came of a run, in a sentence, and the held-out rows that it changed most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mint_train.errors import counted
from mint_train.report.curves import Run, read_rows, set_of
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.metric import with_interval

LOSS = "loss"
FORMAT = ".3g"
"""Of a number in a sentence."""
NOTHING_HELD_OUT = (
    "No rows were held out, so nothing is known of how it does on new rows; --eval-fraction 0.1 holds out a "
    "tenth."
)


@dataclass(frozen=True, slots=True)
class Change:
    """A held-out row before the first step and at the end."""

    source: str
    metric: str
    before: float
    after: float
    gain: float
    """By how much it got better; below 0, worse."""


def result_sentences(run: Run) -> list[str]:
    """Say how the policy does on each held-out set, before and after, or that nothing was held out."""
    if not run.evaluations:
        planned = run.description.data.held_out
        return ["The held-out rows have not been evaluated yet." if planned else NOTHING_HELD_OUT]
    return [on_set(run, name) for name in run.held_out()]


def on_set(run: Run, name: str) -> str:
    """Say how the policy does on one held-out set."""
    lines = [line for line in run.evaluations if set_of(line) == name]
    first, last = lines[0], lines[-1]
    groups = counted(last["groups"], "held-out group") + (f" of {name}" if name else "")
    metrics = dict.fromkeys([headline_metric(run, last), LOSS])
    if first["step"] == last["step"]:
        told = [f"{spelled(metric)} is {figure(metric, last)}" for metric in metrics]
        return f"On {groups}, {' and '.join(told)} after step {last['step']}."
    told = [moved(metric, first, last) for metric in metrics]
    steps = counted(last["step"] - first["step"], "step")
    return f"On {groups}, {' and '.join(told)} in {steps}."


def headline_metric(run: Run, line: Mapping[str, Any]) -> str:
    """Return the metric that says most of a policy: a share if step lines show one, else what they show."""
    shown = [name for name, metric in run.description.metrics.items() if metric.shown]
    shown = [name for name in shown if name in line["metrics"]]
    shares = [name for name in shown if run.description.metrics[name].kind == "share"]
    return next(iter([*shares, *shown]), LOSS)


def spelled(metric: str) -> str:
    """Return a metric's name in a sentence."""
    return f"the {metric}" if metric == LOSS else metric.replace("_", " ")


def moved(metric: str, first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """Say from where to where a metric went."""
    if metric not in first["metrics"]:
        return f"{spelled(metric)} came to {figure(metric, last)}"
    before, after = (float(line["metrics"][metric]) for line in (first, last))
    if f"{before:{FORMAT}}" == f"{after:{FORMAT}}":
        return f"{spelled(metric)} stayed at {figure(metric, last)}"
    verb = "rose" if after > before else "fell"
    told = f"{spelled(metric)} {verb} from {figure(metric, first)} to {figure(metric, last)}"
    around = [line["intervals"].get(metric) for line in (first, last)]
    if all(around) and max(low for low, _ in around) <= min(high for _, high in around):
        return f"{told} (the intervals overlap: it may be chance)"
    return told


def figure(metric: str, line: Mapping[str, Any]) -> str:
    """Format a metric of an evaluation for a sentence, with its 95 % interval, if it has one."""
    return with_interval(metric, FORMAT, line["metrics"], line["intervals"])


def row_changes(run: Run) -> list[Change]:
    """Return the held-out rows with two evaluations, those that got better most first.

    Raises:
        UserError: a file of rows is broken.
    """
    metric, sign = row_metric(run)
    folder = RunFolder(run.folder)
    changes: list[Change] = []
    for name in run.held_out():
        steps = [line["step"] for line in run.evaluations if set_of(line) == name]
        if min(steps) < max(steps):
            first, last = (read_rows(folder.evaluation_rows(step, name)) for step in (min(steps), max(steps)))
            changes += changes_between(first, last, metric, sign)
    return sorted(changes, key=lambda change: -change.gain)


def changes_between(
    first: Sequence[Mapping[str, Any]], last: Sequence[Mapping[str, Any]], metric: str, sign: int
) -> list[Change]:
    """Compare two evaluations on one held-out set, group by group.

    Args:
        first: the rows of the earlier one.
        last: those of the later one.
        metric: what is compared.
        sign: 1 if higher is better, else -1.
    """
    if len(first) != len(last):
        return []
    changes = []
    # both keep the order of the data; several groups of one row have the same source
    for before, after in zip(first, last, strict=True):
        if metric in before["metrics"] and metric in after["metrics"]:
            old, new = (float(row["metrics"][metric]) for row in (before, after))
            changes.append(Change(after["source"], metric, old, new, sign * (new - old)))
    return changes


def row_metric(run: Run) -> tuple[str, int]:
    """Return the metric by which rows are compared, and 1 if higher is better, else -1."""
    for name, metric in run.description.metrics.items():
        known = name != LOSS and run.rows and name in run.rows[0]["metrics"]
        if known and metric.shown and metric.kind != "share" and metric.better is not None:
            return name, 1 if metric.better == "higher" else -1
    return LOSS, -1
