"""A run as its folder holds it, for a notebook: what it was, its steps, its evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from mint_train.errors import UserError
from mint_train.report.notebook import run_html
from mint_train.run_folder.description import RunDescription
from mint_train.run_folder.files import read_lines
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.parts import METRICS_FILE
from mint_train.run_folder.records import Evaluation, HeldOut


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A run, finished or not."""

    folder: Path
    description: RunDescription
    """What `run.json` holds: settings, loss, data, versions, status."""
    metrics: list[dict[str, Any]]
    """A dictionary per step: `step`, the loss's metrics by name, `learning_rate`, `tokens`, `seconds`."""
    evaluations: list[dict[str, Any]]
    """A dictionary per evaluation: `step`, `groups`, the metrics by name, and `intervals` of 95 %."""
    held_out: HeldOut
    """The last evaluation on each held-out set, as `RunResult` has it."""

    def _repr_html_(self) -> str:
        return run_html(
            self.folder, [Evaluation.of_line(line) for line in RunFolder(self.folder).evaluations()]
        )

    def frame(self) -> Any:
        """Return the metrics as a pandas DataFrame whose index is the step.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ModuleNotFoundError:
            raise UserError("a DataFrame needs pandas: pip install pandas") from None
        return pandas.DataFrame(self.metrics, columns=None if self.metrics else ["step"]).set_index("step")


def load_run(path: str | Path) -> SavedRun:
    """Read a run folder.

    Raises:
        UserError: it is not one, or it is broken.
    """
    folder = RunFolder(Path(path))
    description = folder.read_description()
    evaluations = folder.evaluations()
    steps = read_lines(folder.path / METRICS_FILE)
    return SavedRun(
        folder.path,
        description,
        [flat(line) for line in steps],
        [flat(line) for line in evaluations],
        HeldOut(map(Evaluation.of_line, evaluations)),
    )


def flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of a run's files with its metrics beside its other values."""
    others = {name: value for name, value in line.items() if name not in ("step", "metrics")}
    return {"step": line["step"], **line["metrics"], **others}
