"""The data of a report, read from run folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mint_train.errors import UserError
from mint_train.run_folder.description import RunDescription
from mint_train.run_folder.files import json_lines, read_lines
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.parts import METRICS_FILE
from mint_train.run_folder.samples import SAMPLE_SCORE, read_samples
from mint_train.run_folder.win_rates import read_win_rates

SPEED = "tokens_per_second"
LEARNING_RATE = "learning_rate"


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric of one run over its steps."""

    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Points:
    """One metric of a run's evaluations, with its 95 % intervals if it has any."""

    steps: Sequence[int]
    values: Sequence[float]
    intervals: Sequence[tuple[float, float] | None]


@dataclass(frozen=True, slots=True)
class Run:
    """A run as its folder describes it."""

    name: str
    folder: Path
    description: RunDescription
    lines: Sequence[Mapping[str, Any]]
    """The lines of `metrics.jsonl`."""
    evaluations: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]]
    """Each held-out row's own metrics in the last evaluation."""
    samples: Sequence[Mapping[str, Any]] = ()
    """What the policy wrote for the prompts of `--sample-prompts`, a line per prompt and step."""
    win_rates: Sequence[Mapping[str, Any]] = ()
    """What `mint-train winrate` left in the folder, a line per policy that this run's was compared with."""

    def metrics(self) -> list[str]:
        """Name what can be drawn: the loss's metrics, then learning rate and speed."""
        return [*dict.fromkeys(name for line in self.lines for name in line["metrics"]), LEARNING_RATE, SPEED]

    def curve(self, metric: str) -> Curve:
        """Return a metric over the steps that have it; the score of samples begins before the first step."""
        if metric == SAMPLE_SCORE:
            return score_curve(self.samples)
        found = [
            (line["step"], value) for line in self.lines if (value := value_of(line, metric)) is not None
        ]
        return Curve([step for step, _ in found], [value for _, value in found])

    def held_out(self) -> list[str]:
        """Name the held-out sets; a set without a name is ""."""
        return list(dict.fromkeys(set_of(line) for line in self.evaluations))

    def points(self, metric: str, held_out: str = "") -> Points:
        """Return a metric of the evaluations on a held-out set that have it."""
        lines = [line for line in self.evaluations if metric in line["metrics"] and set_of(line) == held_out]
        return Points(
            [line["step"] for line in lines],
            [line["metrics"][metric] for line in lines],
            [line["intervals"].get(metric) for line in lines],
        )


def score_curve(samples: Iterable[Mapping[str, Any]]) -> Curve:
    """Return the mean score of samples over the steps after which they were written."""
    scores: dict[int, list[float]] = {}
    for line in samples:
        if line.get("score") is not None:
            scores.setdefault(line["step"], []).append(line["score"])
    return Curve(list(scores), [sum(known) / len(known) for known in scores.values()])


def set_of(line: Mapping[str, Any]) -> str:
    """Return the name of the held-out set that an evaluation is of."""
    return str(line.get("held_out", ""))


def value_of(line: Mapping[str, Any], metric: str) -> float | None:
    """Return a metric of a step, or None if the step does not have it."""
    if metric == SPEED:
        return line["tokens"] / line["seconds"] if line["seconds"] else None
    value: float | None = line[metric] if metric == LEARNING_RATE else line["metrics"].get(metric)
    return value


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs, each under a distinct name.

    Raises:
        UserError: a folder is missing, broken, or has no step to draw.
    """
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    above = os.path.commonpath([path.parent for path in paths])
    named_alike = len({path.name for path in paths}) < len(paths)
    names = [os.path.relpath(path, above) if named_alike else path.name for path in paths]
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def read_run(path: Path, name: str) -> Run:
    """Read one run.

    Raises:
        UserError: as for `read_runs`.
    """
    folder = RunFolder(path)
    description = folder.read_description()
    lines = read_lines(path / METRICS_FILE)
    if not lines:
        raise UserError(f"{path} has no finished step to draw yet")
    evaluations = folder.evaluations()
    last = [line for line in evaluations if line["step"] == evaluations[-1]["step"]]
    rows = [row for line in last for row in read_rows(folder.evaluation_rows(line["step"], set_of(line)))]
    rows.sort(key=highest_loss_first)
    return Run(name, path, description, lines, evaluations, rows, read_samples(path), read_win_rates(path))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of an evaluation, in the order of the data.

    Raises:
        UserError: the file is broken.
    """
    if not path.exists():
        return []
    rows = json_lines(path)
    try:
        for row in rows:
            highest_loss_first(row)  # which fails where a line is not a row
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is broken: {error}") from error
    return rows


def highest_loss_first(row: Mapping[str, Any]) -> float:
    """Order rows of evaluations by their loss."""
    return -float(row["metrics"].get("loss", 0.0))
