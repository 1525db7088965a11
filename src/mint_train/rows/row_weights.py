"""The reserved field `weight`: what a row counts in its batch's mean, whatever the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.forms import Reading
from mint_train.rows.values import MAX_SCORE, number

WEIGHT = "weight"


def split_weight(row: Mapping[str, Any]) -> tuple[float | None, Mapping[str, Any]]:
    """Take the weight out of a row, which the loss does not see; None where the row has none.

    Raises:
        RowError: it is not a finite number, below 0, or so large that sums of such would overflow.
    """
    if WEIGHT not in row:
        return None, row
    rest = {name: value for name, value in row.items() if name != WEIGHT}
    if row[WEIGHT] is None or row[WEIGHT] == "":
        return None, rest
    try:
        weight = number(row[WEIGHT], WEIGHT)
    except RowError as error:
        raise RowError(WEIGHT, f"{error.problem}; leave the column out with --columns {WEIGHT}=") from None
    if not 0 <= weight < MAX_SCORE:
        meaning = f"what a row counts in its batch's mean is 0 or more, and below {MAX_SCORE:g}"
        raise RowError(WEIGHT, f"is {weight:g}; {meaning}")
    return weight, rest


def weighted(reading: Reading, weight: float) -> Reading:
    """Return what was read of a row that has a weight."""
    form = reading.form and f"{reading.form}, weighted"
    return replace(reading, form=form, weight=weight)
