"""The win rates of a run's policies, as `mint-train winrate` leaves them in its folder: a line each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mint_train.run_folder.files import append_line, read_lines
from mint_train.run_folder.parts import WIN_RATES_FILE

DECIDING = ("step", "against", "judge", "judge_options", "prompts", "sampling")
"""What makes two lines the same comparison."""


def keep_win_rate(folder: Path, line: Mapping[str, Any]) -> None:
    """Add the win rate of a policy of a run; a later line of the same comparison replaces an earlier one.

    Args:
        folder: the run's.
        line: `step`, `against` (the other policy), `judge`, `judge_options`, `prompts` and `sampling`;
            `win_rate` and `length_controlled`, each with `value`, `low` and `high`; the shares `better`,
            `equal` and `worse`; `comparisons`, and `left_out` by the judge.

    Raises:
        MintTrainError: it cannot be written.
    """
    append_line(folder / WIN_RATES_FILE, dict(line), durable=True)


def read_win_rates(folder: Path) -> list[dict[str, Any]]:
    """Return the win rates in a run's folder, of each comparison the last one.

    Raises:
        UserError: the file is broken.
    """
    lines = read_lines(folder / WIN_RATES_FILE)
    return list({json.dumps([line.get(name) for name in DECIDING]): line for line in lines}.values())
