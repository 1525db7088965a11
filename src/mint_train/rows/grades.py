"""How good each of several answers is: by what stands in them, in a list beside them, or by a choice.

Every grade that is returned is higher for a better answer, so that ranks change their sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.messages import is_message
from mint_train.rows.row import kind
from mint_train.rows.values import as_number, from_json, grade
from mint_train.rows.verdicts import VERDICTS, ColumnRefusedError, Survey, shown

RANK_KEYS = ("rank", "ranking")
SCORE_KEYS = ("overall_score", "score", "rating", "reward", "pm_score", "quality")
"""Fields of an answer that say how good it is."""
RANK_COLUMNS = ("ranks", "rank", "ranking", "rankings")
SCORE_COLUMNS = ("scores", "score", "ratings", "rating", "rewards")
"""Columns with a list that says how good each answer is."""


def find_grades(
    row: Mapping[str, Any], field: str, items: Sequence[Any], survey: Survey, implicit: bool
) -> tuple[list[float], frozenset[str]]:
    """Return how good each item is, and the columns that say so.

    Raises:
        RowError: nothing says so, or a grade is wrong.
    """
    if (grades := grades_in_items(field, items)) is not None:
        return grades, frozenset()
    if (graded := grades_in_column(row, len(items))) is not None:
        return graded
    for column in VERDICTS:
        if isinstance(from_json(row.get(column)), list):
            raise RowError(column, f"is a list that labels {field} one by one, which does not rank them")
        if (chosen := as_number(row.get(column))) is not None and not isinstance(row[column], bool):
            index = choice(row, column, len(items), survey, int(chosen))
            return [float(n == index) for n in range(len(items))], frozenset({column})
    if implicit and all(not isinstance(item, Mapping) or is_message(item) for item in items):
        return [float(index) for index in reversed(range(len(items)))], frozenset()
    tried = ", ".join((*RANK_KEYS, *SCORE_KEYS[:3]))
    raise RowError(
        field,
        f"nothing says how good each of its items is: none of {tried} in them, and no list beside them; name "
        "one with --columns scores=COLUMN, or --columns ranks=COLUMN where the lowest is the best",
    )


def grades_in_items(field: str, items: Sequence[Any]) -> list[float] | None:
    """Return the grades in the items of a list; None where they have none.

    Raises:
        RowError: some have one and others have not, or one is wrong.
    """
    if not all(isinstance(item, Mapping) for item in items):
        return None
    for keys, sign in ((RANK_KEYS, -1.0), (SCORE_KEYS, 1.0)):
        for key in keys:
            if any(item.get(key) is not None for item in items):
                return [
                    sign * grade(item.get(key), f"{field}[{index}].{key}") for index, item in enumerate(items)
                ]
    return None


def grades_in_column(row: Mapping[str, Any], count: int) -> tuple[list[float], frozenset[str]] | None:
    """Return the grades in the list beside `count` items, and the list's column, if there is such a list.

    Raises:
        RowError: the list has another length, or a grade is wrong.
    """
    for columns, sign in ((RANK_COLUMNS, -1.0), (SCORE_COLUMNS, 1.0)):
        for column in columns:
            values = from_json(row.get(column))
            if values is not None and column in ("scores", "ranks") and not isinstance(values, list):
                raise RowError(column, f"must be a list of numbers, not {kind(values)}")
            if not isinstance(values, list):
                continue
            if len(values) != count:
                raise RowError(column, f"holds {len(values)} for {count} completions")
            grades = [sign * grade(value, f"{column}[{index}]") for index, value in enumerate(values)]
            return grades, frozenset({column})
    return None


def choice(row: Mapping[str, Any], column: str, count: int, survey: Survey, chosen: int) -> int:
    """Return the index of the item that a verdict chooses; the column shows whether it counts from 0 or 1.

    Raises:
        ColumnRefusedError: it shows neither.
    """
    numbers = {as_number(value) for value in survey.of(column, row).values()}
    if 0 in numbers and all(number is not None and number < count for number in numbers):
        return chosen
    if (
        0 not in numbers
        and count in numbers
        and all(number is not None and number <= count for number in numbers)
    ):
        return chosen - 1
    raise ColumnRefusedError(
        column,
        f"holds {shown(survey.of(column, row))}, which does not show whether it counts from 0 or 1; give the "
        "list's own scores with --columns scores=COLUMN",
    )
