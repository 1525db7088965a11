"""`--select-by` and `--patience` of a run: its best state so far, and when to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mint_train.errors import OptionError, counted
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.metric import Metric
from mint_train.run_folder.selection import Selection
from mint_train.settings.model import Settings


@dataclass(frozen=True, slots=True)
class Selecting:
    """Chooses among the states of a run by its recorded evaluations, so that a resume chooses alike."""

    folder: RunFolder
    selection: Selection | None
    """None without `--select-by`: no state is better than another."""
    patience: int | None

    @property
    def best(self) -> int | None:
        """The step of the best state so far."""
        return None if self.selection is None else self.selection.best_step(self.folder.evaluations())

    @property
    def out_of_patience(self) -> bool:
        """Whether the run is to stop."""
        if self.selection is None or self.patience is None:
            return False
        return self.selection.since_best(self.folder.evaluations()) >= self.patience

    def describe(self) -> str:
        """Say which state is the best, and why the run stopped if it lost patience."""
        if self.selection is None or (best := self.best) is None:
            return ""
        value = self.selection.values(self.folder.evaluations())[best]
        line = f"Best by {self.selection.metric}: {value:.4g} after step {best}."
        if not self.out_of_patience:
            return line
        return f"{line} Stopped: {counted(self.patience or 0, 'evaluation')} in a row did not improve it."


def read_selection(
    settings: Settings, metrics: Mapping[str, Metric], sets: Sequence[str]
) -> Selection | None:
    """Return what `--select-by` asks for, or None.

    Raises:
        OptionError: there are no held-out rows, the better side is unknown, or `--patience` stands alone.
    """
    if settings.select_by is None:
        if settings.patience is not None:
            raise OptionError("--patience needs --select-by METRIC, the figure that it waits for")
        return None
    return Selection.parse(settings.select_by, metrics, sets)
