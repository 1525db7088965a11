"""What a loss says of a metric: how it is written, what it measures, and which direction is better."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """How to show and judge one number of a loss."""

    format: str = ".4f"
    """Format specification of the number, as `format()` takes it."""
    unit: str = ""
    """Unit, such as "nats" or "nats per token"; empty for a number without one."""
    kind: Literal["mean", "share", "batch"] = "mean"
    """What the number is: "mean", an average over groups; "share", the share of groups for which something
    holds, 0 to 1; "batch", a number of the whole batch or of the loss's state."""
    better: Literal["higher", "lower"] | None = None
    """Which direction is an improvement, where one is."""
    shown: bool = False
    """Whether each step's line shows it."""


FIXED = re.compile(r"\.([4-9]|\d\d)f")
LOSS = Metric(".6f", better="lower", shown=True)
"""The value of a loss that does not describe it."""


def shown_formats(metrics: Mapping[str, Metric]) -> dict[str, str]:
    """Return the format of each metric that a step's line shows, the loss first."""
    shown = {name: metric.format for name, metric in metrics.items() if metric.shown}
    return {"loss": metrics.get("loss", LOSS).format, **shown}


def screen_format(form: str) -> str:
    """Return a number's format for a person at a terminal: many decimals become four significant digits."""
    return ".4g" if FIXED.fullmatch(form) else form


def with_interval(
    name: str, form: str, metrics: Mapping[str, float], intervals: Mapping[str, Sequence[float]]
) -> str:
    """Format a metric with its interval, if it has one: `0.75 [0.60, 0.86]`."""
    if name not in intervals:
        return f"{metrics[name]:{form}}"
    low, high = intervals[name]
    return f"{metrics[name]:{form}} [{low:{form}}, {high:{form}}]"
