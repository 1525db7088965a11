"""What a loss is called: an installed name, a path to a file, or a weighted sum of these."""

from __future__ import annotations

import math
import re
from pathlib import Path

from mint_train.errors import OptionError

TERM = re.compile(r"(?:(?P<weight>[0-9.]+(?:[eE]-?[0-9]+)?)\*)?(?P<name>[^*+]+)")


def is_loss_file(name: str) -> bool:
    """Return whether `name` is a path to a file (`./my_loss.py`, `losses/mine.py`), not an installed loss."""
    return name.endswith(".py") or "/" in name or "\\" in name


def loss_label(name: str) -> str:
    """Return the name of a loss for folders and variables: a file's stem, or the name itself."""
    return Path(name).stem if is_loss_file(name) else name


def parse_terms(expression: str) -> list[tuple[float, str]]:
    """Split an expression into weights and names.

    Raises:
        OptionError: a term is not `weight*name`, a weight is not a positive number, a name comes twice.
    """
    terms: list[tuple[float, str]] = []
    for part in expression.split("+"):
        match = TERM.fullmatch(part.strip())
        weight = float_or_nan(match["weight"] or "1") if match else math.nan
        if match is None or not 0 < weight < math.inf:
            raise OptionError(
                f'--loss {expression}: "{part}" is not a term; write NAME or WEIGHT*NAME, WEIGHT above 0'
            )
        terms.append((weight, match["name"].strip()))
    names = [name for _, name in terms]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f'--loss {expression}: "{name}" appears twice; combine its weights')
    return terms


def float_or_nan(text: str) -> float:
    """Read a number; NaN where the text is something else."""
    try:
        return float(text)
    except ValueError:
        return math.nan
