"""Curves as pictures: the same drawing for the PNG file and for the SVG of a light or dark page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mint_train.report.curves import LEARNING_RATE, SPEED, Curve, Points, Run
from mint_train.run_folder.metric import Metric
from mint_train.run_folder.samples import SAMPLE_SCORE

LIGHT = ("#0067a5", "#c44601", "#00745a", "#8b4fa3", "#8a6a00", "#5a5a5a")
"""Colours of the runs: contrast of at least 4.5 to 1 on white, distinct for colour-blind readers."""
DARK = ("#56b4e9", "#ff9e64", "#2fc79a", "#d59bea", "#f0c84b", "#b8b8b8")
"""The same on a dark page."""
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (1, 1.5), (6, 2, 1, 2))
"""Line styles that distinguish runs without colour."""
MARKERS = {"diamonds": "D", "circles": "o", "squares": "s", "triangles": "^", "crosses": "X"}
"""What marks the evaluations on each held-out set."""
LONG = 60
"""Steps from which on a curve is smoothed."""
WINDOWS = 25
"""Smoothing windows in a long curve."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 5),
    "axes.formatter.use_mathtext": True,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of a drawing."""

    ink: str
    grid: str
    runs: Sequence[str]


PAPER = Palette("#333333", "#dddddd", LIGHT)
# placeholders in the SVG for variables of the page, which knows whether it is light or dark
VARIABLES = Palette("#010101", "#020202", [f"#0300{index:02x}" for index in range(len(LIGHT))])
NAMES = {
    VARIABLES.ink: "var(--ink)",
    VARIABLES.grid: "var(--grid)",
    **{colour: f"var(--run{index})" for index, colour in enumerate(VARIABLES.runs)},
}


def described(runs: Sequence[Run], metric: str) -> Metric:
    """Return what the first run that describes a metric says of it."""
    if metric == SPEED:
        return Metric(unit="tokens/s")
    return next(
        (run.description.metrics[metric] for run in runs if metric in run.description.metrics), Metric()
    )


def title(metric: str) -> str:
    """Spell a metric's name out."""
    return "speed" if metric == SPEED else metric.replace("_", " ")


def axis_label(runs: Sequence[Run], metric: str) -> str:
    """Name an axis, with its unit if that is known."""
    known = described(runs, metric)
    unit = "share, 0 to 1" if known.kind == "share" else known.unit
    return f"{title(metric)} ({unit})" if unit else title(metric)


def metrics_of(runs: Sequence[Run]) -> list[str]:
    """Name the metrics of any of the runs, the loss first, learning rate and speed last."""
    names = dict.fromkeys(name for run in runs for name in run.metrics()[:-2])
    drawn = [*names, *runs[0].metrics()[-2:]]
    return [name for name in drawn if any(run.curve(name).steps for run in runs)]


def drawn_metrics(runs: Sequence[Run]) -> list[str]:
    """Name the metrics that a chart says something of: those that are not one number all the time."""
    metrics = metrics_of(runs)
    return [name for name in metrics if len(values_of(runs, name)) > 1] or metrics[:1]


def values_of(runs: Sequence[Run], metric: str) -> set[float]:
    """Return the values of a metric in all steps and evaluations of the runs."""
    drawn = [run.curve(metric).values for run in runs]
    drawn += [run.points(metric, name).values for run in runs for name in run.held_out()]
    return {value for values in drawn for value in values}


def smoothed(curve: Curve) -> Curve | None:
    """Return the running mean of a long curve; None for a short one."""
    if len(curve.steps) < LONG:
        return None
    width = max(3, len(curve.steps) // WINDOWS)
    sums = np.cumsum([0.0, *curve.values])
    indices = np.arange(len(curve.steps))
    low = np.maximum(indices - width // 2, 0)
    high = np.minimum(indices + width // 2 + 1, len(curve.steps))
    means = (sums[high] - sums[low]) / (high - low)
    return Curve(curve.steps, means.tolist())


def draw(axes: Axes, runs: Sequence[Run], metric: str, palette: Palette) -> None:
    """Draw a metric of all runs: curves, running means of long ones, evaluations as points."""
    colours = islice(cycle(palette.runs), len(runs))
    for run, colour, dashes in zip(runs, colours, cycle(DASHES), strict=False):
        curve = run.curve(metric)
        mean = smoothed(curve) if metric != LEARNING_RATE else None
        few = len(curve.steps) <= 2 or metric == SAMPLE_SCORE
        axes.plot(
            curve.steps,
            curve.values,
            color=colour,
            linewidth=0.7 if mean else 1.6,
            alpha=0.3 if mean else 1.0,
            dashes=(None, None) if mean or not dashes else dashes,
            marker="o" if few else None,
            markersize=4,
        )
        if mean:
            axes.plot(mean.steps, mean.values, color=colour, linewidth=1.8, dashes=dashes or (None, None))
        for name, marker in zip(run.held_out(), cycle(MARKERS), strict=False):
            draw_points(axes, run.points(metric, name), MARKERS[marker], colour, palette)
    axes.set_xlabel("optimiser step", color=palette.ink)
    axes.set_ylabel(axis_label(runs, metric), color=palette.ink)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if described(runs, metric).kind == "share":
        axes.set_ylim(-0.04, 1.04)
    axes.tick_params(colors=palette.ink)
    axes.grid(color=palette.grid)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color(palette.ink)


def draw_points(axes: Axes, points: Points, marker: str, colour: str, palette: Palette) -> None:
    """Draw the evaluations on one held-out set, with their intervals."""
    if not points.steps:
        return
    around = [
        (value - pair[0], pair[1] - value) if pair else (0.0, 0.0)
        for value, pair in zip(points.values, points.intervals, strict=True)
    ]
    errors = np.maximum(np.array(around).T, 0.0)
    axes.errorbar(
        points.steps, points.values, errors, fmt=marker, color=colour, markersize=5, elinewidth=1.2,
        capsize=3, markeredgecolor=palette.ink, markeredgewidth=0.6, zorder=3,
    )  # fmt: skip


def write_png(runs: Sequence[Run], output: Path) -> None:
    """Write all metrics of the runs as one picture on white, 150 dots per inch."""
    metrics = drawn_metrics(runs)
    rows = -(-len(metrics) // 2)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 0.8 + 2.9 * rows))
        panels = figure.subplots(rows, 2, squeeze=False).flat
        for axes, metric in zip(panels, metrics, strict=False):
            draw(axes, runs, metric, PAPER)
        for axes in list(figure.axes)[len(metrics) :]:
            axes.remove()
        keys = [
            mpl.lines.Line2D([], [], color=colour, linewidth=2, dashes=dashes or (None, None))
            for colour, dashes, _ in zip(cycle(PAPER.runs), cycle(DASHES), runs, strict=False)
        ]
        figure.legend(
            keys, [run.name for run in runs], loc="outside upper left", ncols=3, frameon=False, fontsize=10
        )
        figure.savefig(output, format="png", dpi=150, facecolor="white")


def svg(runs: Sequence[Run], metric: str) -> str:
    """Draw a metric as an SVG element whose colours are variables of the page."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": metric}):
        figure = Figure(figsize=(5.2, 2.9))
        draw(figure.subplots(), runs, metric, VARIABLES)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<g id=\"[^\"]*\"", "<g", text)  # ids would repeat in every chart of the page
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    text = re.sub("|".join(NAMES), lambda found: NAMES[found[0]], text)
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
