"""A report as one HTML page, without scripts or requests, and with its pictures inside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mint_train.errors import counted
from mint_train.report.charts import (
    DARK,
    DASHES,
    LIGHT,
    LONG,
    MARKERS,
    axis_label,
    drawn_metrics,
    metrics_of,
    svg,
    title,
)
from mint_train.report.curves import Run
from mint_train.report.result import LOSS, Change, result_sentences, row_changes
from mint_train.report.row_texts import row_texts
from mint_train.report.samples import cut, samples_of
from mint_train.report.win_rates import win_rate_table
from mint_train.settings.model import Settings

SHOWN_EXAMPLES = 3
"""Per run."""
NOTHING: tuple[object, ...] = (None, "", (), [], {})
"""Values of a setting that was not given, as a run records them."""
HIDDEN_SETTINGS = ("options", "output", "overwrite", "progress", "track")


def make_page(runs: Sequence[Run]) -> str:
    """Render the runs as HTML."""
    environment = Environment(
        loader=PackageLoader("mint_train.report", ""), autoescape=True, undefined=StrictUndefined
    )
    metrics = metrics_of(runs)
    drawn = drawn_metrics(runs)
    own, defaults = settings_tables(runs)
    return environment.get_template("page.html.j2").render(
        heading=", ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs",
        light=LIGHT,
        dark=DARK,
        dashes=[" ".join(str(length * 2) for length in dashes) for dashes in DASHES],
        runs=[{"name": run.name, "status": status(run)} for run in runs],
        results=[
            f"{run.name}: {said[0].lower()}{said[1:]}" if len(runs) > 1 else said
            for run in runs
            for said in result_sentences(run)
        ],
        note=curves_note(runs, [name for name in metrics if name not in drawn]),
        charts=[
            {"title": title(metric), "label": chart_label(runs, metric), "svg": svg(runs, metric)}
            for metric in drawn
        ],
        columns=[
            [final_table(runs, metrics)],
            [
                own,
                table("Data", "", [data_of(run) for run in runs]),
                table("Made with", "", [made_with(run) for run in runs], compared=True),
                defaults,
            ],
        ],
        win_rates=win_rate_table(runs),
        samples=samples_of(runs),
        examples=examples(runs),
    )


def settings_tables(runs: Sequence[Run]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a table of the settings that some run has not left at the default, and one of the others."""
    chosen = [settings_of(run) for run in runs]
    names = dict.fromkeys(name for of_run in chosen for name in of_run)
    plain = {name for name in names if all(is_default(name, of_run.get(name)) for of_run in chosen)}
    own, defaults = (
        [{name: of_run[name] for name in of_run if (name in plain) is folded} for of_run in chosen]
        for folded in (False, True)
    )
    folded = table(f"{counted(len(plain), 'setting')} at the default", "setting", defaults)
    return table("Settings", "setting", own, compared=True), folded | {"folded": True}


def is_default(name: str, value: object) -> bool:
    """Return whether a setting has its default value; options of a loss and what is derived have none."""
    field = Settings.model_fields.get(name)
    if field is None or name in ("model", "backend") or field.is_required():
        return False
    default = field.get_default(call_default_factory=True)
    return value == default or (value in NOTHING and default in NOTHING)


def status(run: Run) -> str:
    """Return a run's status, its steps, and why it failed."""
    described = run.description
    steps = f"{described.status}, {run.lines[-1]['step']} of {counted(described.steps, 'step')}"
    return f"{steps}, {described.problem}" if described.problem else steps


def curves_note(runs: Sequence[Run], constant: Sequence[str]) -> str:
    """Explain what the charts show besides the curves, and name the metrics that need no chart."""
    notes = []
    if any(len(run.lines) >= LONG for run in runs):
        notes.append("Bold: running mean; thin: each step.")
    if any(run.evaluations for run in runs):
        sets = next(run.held_out() for run in runs if run.evaluations)
        marked = [f"{marker}: {name or 'held-out data'}" for name, marker in zip(sets, MARKERS, strict=False)]
        said = "; ".join(marked)
        notes.append(f"{said[0].upper()}{said[1:]}, with 95 % confidence intervals if a metric has one.")
    if constant:
        # losses that are compared need not have the same metrics
        curves = {name: [run.curve(name).values for run in runs] for name in constant}
        values = [f"{title(name)} {next(filter(None, curves[name]))[-1]:.4g}" for name in constant]
        notes.append(f"Constant, and not drawn: {', '.join(values)}.")
    return " ".join(notes) or "One point per step."


def chart_label(runs: Sequence[Run], metric: str) -> str:
    """Describe a chart in words, for readers who cannot see it."""
    ends = []
    for run in runs:
        curve = run.curve(metric)
        if curve.steps:
            ends.append(f"{run.name} from {curve.values[0]:.4g} to {curve.values[-1]:.4g}")
    return f"{axis_label(runs, metric)} over optimiser steps: {'; '.join(ends)}"


def table(
    name: str, column: str, values: Sequence[Mapping[str, Any]], *, compared: bool = False
) -> dict[str, Any]:
    """Return a table of values by run; `compared` marks the rows in which runs differ."""
    names = dict.fromkeys(key for of_run in values for key in of_run)
    rows = [
        {
            "name": key,
            "cells": [shown(of_run.get(key)) for of_run in values],
            "differs": compared and len({shown(of_run.get(key)) for of_run in values}) > 1,
        }
        for key in names
    ]
    rows.sort(key=lambda row: not row["differs"])
    differing = any(row["differs"] for row in rows)
    return {
        "title": name,
        "column": column,
        "note": "≠ marks what differs between the runs." if differing else "",
        "numbers": False,
        "folded": False,
        "rows": rows,
    }


def final_table(runs: Sequence[Run], metrics: Sequence[str]) -> dict[str, Any]:
    """Return a table of each metric's last value, and its value in the last evaluation."""
    values: list[dict[str, str]] = []
    for run in runs:
        own: dict[str, str] = {"last step": str(run.lines[-1]["step"])}
        for metric in metrics:
            curve = run.curve(metric)
            if curve.steps:
                own[axis_label(runs, metric)] = f"{curve.values[-1]:.6g}"
            for name in run.held_out():
                points = run.points(metric, name)
                if points.steps:
                    interval = points.intervals[-1]
                    around = f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""
                    label = f"{axis_label(runs, metric)}, {name or 'held out'}"
                    own[label] = f"{points.values[-1]:.6g}{around}"
        own["tokens trained"] = f"{sum(line['tokens'] for line in run.lines):,}"
        own["hours"] = f"{sum(line['seconds'] for line in run.lines) / 3600:.3f}"
        values.append(own)
    return table("Final figures", "figure", values) | {"numbers": True}


def settings_of(run: Run) -> dict[str, Any]:
    """Collect a run's settings and the loss's options."""
    described = run.description
    settings = {name: value for name, value in described.settings.items() if name not in HIDDEN_SETTINGS}
    options = {f"options.{name}": value for name, value in described.options.items()}
    return settings | {"backend": described.backend, "model": described.model} | options


def data_of(run: Run) -> dict[str, Any]:
    """Collect what is known about a run's data."""
    data = run.description.data.model_dump()
    sources = data.pop("sources")
    if len(sources) > 1:
        data |= {f"source {source['path']}": source for source in sources}
    for held_out in data.pop("held_out"):
        name = held_out.pop("name") or "held out"
        data |= {f"{name}: {key}": value for key, value in held_out.items()}
    counted = {name: len(value) if name.endswith("left_out") else value for name, value in data.items()}
    return {name.replace("_", " "): value for name, value in counted.items()}


def made_with(run: Run) -> dict[str, Any]:
    """Collect the versions of a run's plugins and packages."""
    return {**run.description.plugins, **run.description.versions}


def examples(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Collect held-out rows with their texts: those that changed most, or else those of the highest loss.

    There are none of a run whose rows have no loss of their own, such as one of KTO.
    """
    better, worse, high = [], [], []
    for run in runs:
        changes = row_changes(run)
        gains = [change for change in changes[:SHOWN_EXAMPLES] if change.gain > 0]
        losses = [change for change in changes[::-1][:SHOWN_EXAMPLES] if change.gain < 0]
        with_loss = [row for row in run.rows if LOSS in row["metrics"]]
        rows = [] if changes else with_loss[:SHOWN_EXAMPLES]
        sources = [change.source for change in (*gains, *losses)] + [row["source"] for row in rows]
        texts = row_texts(run, sources)
        better += [example(run, change.source, change_figures(change), texts) for change in gains]
        worse += [example(run, change.source, change_figures(change), texts) for change in losses]
        high += [example(run, row["source"], row_figures(row), texts) for row in rows]
    sections = {
        "Held-out rows that got better": better,
        "Held-out rows that got worse": worse,
        "Held-out rows with the highest loss": high,
    }
    return [{"title": name, "rows": rows} for name, rows in sections.items() if rows]


def example(run: Run, source: str, figures: str, texts: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return what is shown of a row: where it stands, its figures, and its fields if they are known."""
    fields = {name: cut(text) for name, text in texts.get(source, {}).items()}
    place = Path(source).name if Path(source).is_absolute() else source  # the page may be shown to others
    return {"run": run.name, "source": place, "figures": figures, "fields": fields}


def change_figures(change: Change) -> str:
    """Format from where to where a row went."""
    return f"{title(change.metric)} {change.before:.4g} \N{RIGHTWARDS ARROW} {change.after:.4g}"


def row_figures(row: Mapping[str, Any]) -> str:
    """Format the metrics of a row."""
    return ", ".join(f"{title(name)} {value:.4g}" for name, value in row["metrics"].items())


def shown(value: object) -> str:
    """Write a value as a reader of the settings would expect it."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
