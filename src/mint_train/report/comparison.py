"""The table at the end of a comparison of losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from mint_train.observers.console import with_interval
from mint_train.observers.screen import Screen
from mint_train.observers.terminal import echo
from mint_train.run_folder.metric import Metric, screen_format


@dataclass(frozen=True, slots=True)
class Compared:
    """The result of one loss in a comparison."""

    loss: str
    metrics: Mapping[str, Metric]
    """What the loss says of its metrics."""
    first: Mapping[str, Any]
    """The line of its evaluation before the first step; empty if the run failed."""
    last: Mapping[str, Any]
    """The line of its evaluation after the last step; empty if the run failed."""
    problem: str | None
    """Why the run failed."""


def print_comparison(results: Sequence[Compared]) -> None:
    """Print the losses, the best first: a table on a terminal, otherwise aligned plain lines."""
    header, rows = comparison_rows(results)
    console = Screen()
    if console.is_terminal:
        table = Table(*(Column(Text(cell)) for cell in header))
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
        return
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def comparison_rows(results: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows, the best first by the first metric that all losses show, failed runs last."""
    done = [result for result in results if result.problem is None]
    failed = [result for result in results if result.problem is not None]
    described = {name: metric for result in done for name, metric in result.metrics.items()}
    shown = [
        name
        for result in done
        for name, metric in result.metrics.items()
        if metric.shown and name in result.last["metrics"]
    ]
    formats = {name: screen_format(metric.format) for name, metric in described.items()}
    common = [name for name in dict.fromkeys(shown) if shown.count(name) == len(done)]
    if common:
        highest_first = described[common[0]].better != "lower"
        done.sort(key=lambda result: float(result.last["metrics"][common[0]]), reverse=highest_first)
    header = ["loss", "steps", *(f"{name} before" for name in common[:1]), *common, "loss value", ""]
    rows = [
        [
            result.loss,
            str(result.last["step"]),
            *(f"{result.first['metrics'][name]:{formats[name]}}" for name in common[:1]),
            *(
                with_interval(name, formats[name], result.last["metrics"], result.last["intervals"])
                for name in common
            ),
            f"{result.last['metrics']['loss']:.4g}",
            "",
        ]
        for result in done
    ]
    if not failed:
        return header[:-1], [row[:-1] for row in rows]
    blank = [""] * (len(header) - 3)
    rows += [[result.loss, "failed", *blank, str(result.problem)] for result in failed]
    return header, rows
