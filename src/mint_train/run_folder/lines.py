"""What the lines of a run's JSON Lines files hold, so that a broken one is refused where it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mint_train.run_folder.parts import (
    CHECKPOINTS_FILE,
    EVALUATIONS_FILE,
    METRICS_FILE,
    TOKENS_FILE,
    WIN_RATES_FILE,
)


def is_number(value: Any) -> bool:
    """Return whether a value is a number (bools excluded)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def are_numbers(value: Any) -> bool:
    """Return whether a value is an object of numbers."""
    return isinstance(value, dict) and all(map(is_number, value.values()))


def are_intervals(value: Any) -> bool:
    """Return whether a value is an object of pairs of numbers."""
    return isinstance(value, dict) and all(
        isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair)) for pair in value.values()
    )


def are_names(value: Any) -> bool:
    """Return whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def is_share(value: Any) -> bool:
    """Return whether a value is a share with its interval."""
    return are_numbers(value) and {"value", "low", "high"} <= value.keys()


def is_text(value: Any) -> bool:
    """Return whether a value is a text."""
    return isinstance(value, str)


LINES: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    METRICS_FILE: {
        "metrics": are_numbers,
        "learning_rate": is_number,
        "tokens": is_number,
        "seconds": is_number,
    },
    EVALUATIONS_FILE: {
        "metrics": are_numbers,
        "intervals": are_intervals,
        "batch_means": are_names,
        "groups": is_number,
    },
    CHECKPOINTS_FILE: {
        "state": is_text,
        "sampler": lambda value: value is None or isinstance(value, str),
        "loss_state": are_numbers,
    },
    TOKENS_FILE: {"kind": is_text, "tokens": is_number},
    WIN_RATES_FILE: {
        **dict.fromkeys(("against", "judge"), is_text),
        "judge_options": lambda value: isinstance(value, dict),
        **dict.fromkeys(("win_rate", "length_controlled"), is_share),
        **dict.fromkeys(("better", "equal", "worse", "comparisons", "left_out"), is_number),
    },
}
"""By the name of a file, what each of its lines must hold beside its step."""


def what_is_wrong(name: str, line: Any) -> str:
    """Return what is wrong with a line of a file, or nothing."""
    if not isinstance(line, dict) or not isinstance(line.get("step"), int) or line["step"] is True:
        return "a line of it has no step"
    for key, fits in LINES.get(name, {}).items():
        if key not in line or not fits(line[key]):
            return f'the line of step {line["step"]} has no "{key}" as this program writes it'
    return ""
