"""`--select-by`: which of a run's states is the best, read from its evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mint_train.errors import OptionError, nearest
from mint_train.run_folder.metric import LOSS, Metric

SIDES: Mapping[str, Literal["higher", "lower"]] = {"max": "higher", "min": "lower"}


@dataclass(frozen=True, slots=True)
class Selection:
    """The figure of a held-out set that the best state has the best value of."""

    held_out: str
    """The name of the set; "" where the only one has none."""
    metric: str
    better: Literal["higher", "lower"]

    @classmethod
    def parse(cls, said: str, metrics: Mapping[str, Metric], sets: Sequence[str]) -> Selection:
        """Read `METRIC`, `SET/METRIC`, or one of them with `:max` or `:min` behind it.

        Args:
            said: what `--select-by` was given.
            metrics: what the loss says of its metrics; it knows which side is the better one.
            sets: the names of the held-out sets.

        Raises:
            OptionError: nothing is held out, several sets are and none is named, or the better side is
                unknown.
        """
        if not sets:
            raise OptionError(f"--select-by {said} needs held-out rows: give --eval-data or --eval-fraction")
        named, colon, side = said.rpartition(":")
        name = named if colon and side in SIDES else said
        held_out, slash, metric = name.partition("/")
        if not (slash and held_out in sets):
            held_out, metric = sets[0], name
            if len(sets) > 1:
                choices = " or ".join(f"{each}/{name}" for each in sets)
                raise OptionError(f"--select-by {said}: there are several held-out sets; write {choices}")
        known = {"loss": LOSS, **metrics}
        better = SIDES[side] if name != said else known[metric].better if metric in known else None
        if better is None:
            hint = "" if metric in known else nearest(metric, known)
            raise OptionError(
                f"--select-by {said}: the loss does not say which side of {metric} is better"
                f"{hint}; write {name}:max or {name}:min"
            )
        return cls(held_out, metric, better)

    def values(self, lines: Sequence[Mapping[str, Any]]) -> dict[int, float]:
        """Return the figure after each step that was evaluated, of lines of `evaluations.jsonl`.

        Raises:
            OptionError: an evaluation does not have the figure.
        """
        own = [line for line in lines if line.get("held_out", "") == self.held_out]
        for line in own:
            if self.metric not in line["metrics"]:
                has = ", ".join(line["metrics"])
                hint = nearest(self.metric, line["metrics"])
                raise OptionError(f"--select-by: an evaluation has no {self.metric}{hint}; it has {has}")
        return {line["step"]: line["metrics"][self.metric] for line in own if line["step"] > 0}

    def best_step(self, lines: Sequence[Mapping[str, Any]]) -> int | None:
        """Return the step with the best figure, the first of equal ones; None before any."""
        values = self.values(lines)
        sign = -1 if self.better == "higher" else 1
        return min(values, key=lambda step: (sign * values[step], step), default=None)

    def since_best(self, lines: Sequence[Mapping[str, Any]]) -> int:
        """Return how many evaluations in a row have not improved the figure."""
        best = self.best_step(lines)
        return 0 if best is None else sum(step > best for step in self.values(lines))
