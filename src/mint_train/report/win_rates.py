"""The win rates of runs, as a report shows them: a row for each policy that a run was compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mint_train.report.curves import Run

COLUMNS = (
    "against",
    "judge",
    "wins, a tie half",
    "at equal length",
    "better",
    "equal",
    "worse",
    "comparisons",
)


def win_rate_table(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the columns, and a row of texts for each win rate of the runs."""
    rows = [[f"{run.name} after step {line['step']}", *cells(line)] for run in runs for line in run.win_rates]
    return {"columns": ("run", *COLUMNS), "rows": rows}


def cells(line: Mapping[str, Any]) -> list[str]:
    """Return the cells of a win rate under `COLUMNS`."""
    options = ", ".join(f"{name}={value}" for name, value in line["judge_options"].items())
    return [
        str(line["against"]),
        f"{line['judge']} ({options})" if options else str(line["judge"]),
        share_with_interval(line["win_rate"]),
        share_with_interval(line["length_controlled"]),
        *(f"{line[part]:.1%}" for part in ("better", "equal", "worse")),
        f"{line['comparisons']:,}" + (f" ({line['left_out']:,} left out)" if line["left_out"] else ""),
    ]


def share_with_interval(rate: Mapping[str, float]) -> str:
    """Write a share with its 95 % interval."""
    return f"{rate['value']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]"
