"""The samples of a run: a file for each step after which its prompts were completed, a line per prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mint_train.errors import UserError
from mint_train.run_folder.files import json_lines, write_rows
from mint_train.run_folder.metric import Metric
from mint_train.run_folder.parts import SAMPLES

SAMPLE_SCORE = "sample_score"
SCORE_METRIC = Metric(".3g", better="higher", shown=True)
"""The mean of a judge's scores, among the metrics of the step after which the samples were written."""


def samples_file(folder: Path, step: int) -> Path:
    """Return the file in a run folder of the samples after a step, 0 before the first."""
    return folder / SAMPLES / f"step-{step:06d}.jsonl"


def write_samples(folder: Path, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write the samples after a step, all of them or none.

    Raises:
        MintTrainError: the file cannot be written.
    """
    write_rows(samples_file(folder, step), lines)


def sample_files(folder: Path) -> dict[int, Path]:
    """Return the files of a run folder's samples, by step."""
    found = {path.stem.removeprefix("step-"): path for path in (folder / SAMPLES).glob("step-*.jsonl")}
    return {int(step): found[step] for step in sorted(found, key=int) if step.isdecimal()}


def forget_samples(folder: Path, step: int) -> None:
    """Delete the samples after later steps than this one, which will be repeated."""
    for each, path in sample_files(folder).items():
        if each > step:
            path.unlink()


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of all samples in a run folder, in the order of their steps.

    Raises:
        UserError: a file is broken.
    """
    lines: list[dict[str, Any]] = []
    for step, path in sample_files(folder).items():
        for line in json_lines(path):
            if not isinstance(line, dict) or not {"prompt", "completion"} <= line.keys():
                raise UserError(f"{path} is broken: a line of it is not a sample")
            lines.append({**line, "step": step})
    return lines
