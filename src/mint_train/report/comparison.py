"""A comparison of losses: what its runs have in common, and the table at its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from mint_train.errors import OptionError
from mint_train.observers.screen import Screen
from mint_train.observers.terminal import echo
from mint_train.run_folder.metric import Metric, screen_format, with_interval
from mint_train.run_folder.names import file_name, make_unused_folder
from mint_train.run_folder.records import RunResult
from mint_train.run_folder.replacing import holds_run
from mint_train.settings.model import Settings

EVAL_FRACTION = 0.1
"""The share of the data that is held out by default."""


def check_distinct(losses: Sequence[str]) -> None:
    """Refuse losses whose runs would have one folder.

    Raises:
        OptionError: two have the same name.
    """
    if len({file_name(loss) for loss in losses}) < len(losses):
        raise OptionError("two of the losses have the same name; name each loss once")


def comparison_folder(output: Path | None, losses: Iterable[str], *, overwrite: bool) -> Path:
    """Return the folder for the runs of a comparison, by default a new one in `runs/`.

    Raises:
        OptionError: it holds a run of one of the losses already, which is not to be replaced.
    """
    folder = output or make_unused_folder("compare")
    for loss in losses:
        if not overwrite and holds_run(folder / file_name(loss)):
            raise OptionError(
                f"--output {folder} already holds a run of {loss}; name another folder, or add --overwrite"
            )
    return folder


def eval_share(settings: Settings) -> dict[str, Any]:
    """Return the share to hold out if nobody has chosen what is held out."""
    if settings.eval_data or settings.eval_fraction is not None:
        return {}
    return {"eval_fraction": EVAL_FRACTION}


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

    @classmethod
    def of(cls, loss: str, metrics: Mapping[str, Metric], result: RunResult, held_out: str = "") -> Compared:
        """Return how a run ended, with its first and last evaluation on a held-out set."""
        own = [each.to_line() for each in result.evaluations if each.held_out == held_out]
        if result.status != "done" or not own:
            return cls(loss, metrics, {}, {}, result.problem or result.status)
        return cls(loss, metrics, own[0], own[-1], None)


class Comparison(Mapping[str, RunResult]):
    """How the run of each loss ended, by the loss; printed, a table of their held-out metrics.

    `folder` holds the runs.
    """

    def __init__(
        self, results: Mapping[str, RunResult], metrics: Mapping[str, Mapping[str, Metric]], folder: Path
    ) -> None:
        """Take the results, what each loss says of its metrics, and the folder of the runs."""
        self._results, self._metrics = dict(results), metrics
        self.folder = folder

    def __getitem__(self, loss: str) -> RunResult:
        return self._results[loss]

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def tables(self) -> dict[str, tuple[list[str], list[list[str]]]]:
        """Return a header and rows for each held-out set, by its name."""
        sets = dict.fromkeys(name for result in self.values() for name in result.held_out)
        return {
            name: comparison_rows([Compared.of(loss, self._metrics[loss], self[loss], name) for loss in self])
            for name in sets or [""]
        }

    def __str__(self) -> str:
        parts = []
        for name, (header, rows) in self.tables().items():
            parts += [f"On {name}:"] * bool(name) + aligned(header, rows)
        return "\n".join(parts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(html_table(name, *table) for name, table in self.tables().items())


def html_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table for a notebook."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in plain text."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]


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
    for line in aligned(header, rows):
        echo(line)


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
