"""Which of two answers is better, and whether one is good: columns read as a whole, never value by value.

A value such as 1 says nothing alone: it may be a name ("response 1"), an index, a truth, or a strength that
prefers the second. All the values of the column together decide, and where they fit no reading, or two, the
column is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.columns import value_text
from mint_train.rows.values import as_number

VERDICTS = (
    "label",
    "labels",
    "winner",
    "preference",
    "better",
    "choice",
    "preferred",
    "verdict",
    "overall_preference",
    "preference_strength",
    "better_response_id",
    "safer_response_id",
)
STRENGTHS = ("overall_preference", "preference_strength")
"""Fields whose very name says that they hold signed strengths."""
TRUE_OF_FIRST = ("label", "labels")
"""Fields in which 1 prefers the first of two answers a and b, and 0 the second, as SHP and HALOs have it."""
TIES = (
    "tie",
    "both",
    "neither",
    "equal",
    "same",
    "draw",
    "none",
    "tie (bothbad)",
    "bothbad",
    "both_bad",
    "tie_bothbad",
)
MOST_VALUES = 24
"""Different values that are remembered of a column; a column with more is not one of verdicts."""
SHOWN = 6

YES = (
    "true",
    "1",
    "yes",
    "y",
    "up",
    "thumbs_up",
    "thumbsup",
    "good",
    "desirable",
    "positive",
    "+1",
    "like",
    "liked",
    "accept",
    "accepted",
    "👍",
)
NO = (
    "false",
    "0",
    "-1",
    "no",
    "n",
    "down",
    "thumbs_down",
    "thumbsdown",
    "bad",
    "undesirable",
    "negative",
    "dislike",
    "disliked",
    "reject",
    "refused",
    "👎",
)


class ColumnRefusedError(RowError):
    """A column whose values have no one reading: no row of it can be read or skipped."""


@dataclass
class Survey:
    """The different values of the columns that hold verdicts and labels, over all rows."""

    values: dict[str, dict[str, object]] = field(default_factory=dict)
    """By column, each different value under its text, at most `MOST_VALUES` of them."""

    def note(self, row: Mapping[str, Any], names: Iterable[str]) -> None:
        """Add the values of a row."""
        for name in names:
            value = row[name]
            if value is None or isinstance(value, list | dict):
                continue
            seen = self.values.setdefault(name, {})
            if len(seen) < MOST_VALUES:
                seen.setdefault(value_text(value), value)

    def of(self, name: str, row: Mapping[str, Any]) -> dict[str, object]:
        """Return the values of a column, those of a row included."""
        found = self.values.get(name)
        return found if found else {value_text(row[name]): row[name]}


def shown(values: Mapping[str, object]) -> str:
    """Return some values of a column as text."""
    some = sorted(values, key=lambda text: (as_number(text) is None, as_number(text) or 0.0, text))[:SHOWN]
    return ", ".join(some) + (", ..." if len(values) > SHOWN else "")


def better_of(
    row: Mapping[str, Any], name: str, fields: Sequence[str], sides: Sequence[str], survey: Survey
) -> int | None:
    """Return which of two answers a verdict prefers, 0 or 1, or None for neither.

    Args:
        row: the row.
        name: the field of the verdict.
        fields: what the row calls the answers.
        sides: what is different in their names, such as a and b.
        survey: the values of all rows.

    Raises:
        ColumnRefusedError: the column has no one reading.
    """
    values = survey.of(name, row)
    said = value_text(row[name])
    names = {
        word: index
        for index, (full, side) in enumerate(zip(fields, sides, strict=True))
        for word in (side.lower(), full.lower(), f"model_{side}".lower(), f"response_{side}".lower())
    }
    numbers = [as_number(value) for value in values.values()]
    signed = all(number is not None for number in numbers) and (
        name in STRENGTHS or any(number is not None and number < 0 for number in numbers)
    )
    if signed:
        strength = as_number(row[name]) or 0.0
        return None if strength == 0 else int(strength > 0)
    if all(word in names or word in TIES for word in values) and not any(
        isinstance(value, bool) for value in values.values()
    ):
        return names.get(said)
    if name in TRUE_OF_FIRST and set(values) <= {"0", "1", "true", "false"} and not set(sides) & {"0", "1"}:
        return int(said in ("0", "false"))
    first, second = (side.lower() for side in sides)
    raise ColumnRefusedError(
        name,
        f"holds {shown(values)}, which does not say which of {fields[0]} and {fields[1]} is "
        f'better; say it with --columns "{name}={name}({meanings(values, first, second)})", '
        "the other way round where that is what it means",
    )


def meanings(values: Mapping[str, object], first: str, second: str) -> str:
    """Write what the values of a column may mean, for a user to paste or to turn round."""
    some = sorted(values, reverse=True)[:SHOWN]
    words = [first, second] if len(some) == 2 else [first] * len(some)
    return ";".join(f"{value}={word}" for value, word in zip(some, words, strict=True))


def is_good(row: Mapping[str, Any], name: str, survey: Survey) -> bool:
    """Return whether a label calls an answer good.

    Raises:
        RowError: it is empty.
        ColumnRefusedError: the column holds more than two labels, such as ratings.
    """
    if row.get(name) in (None, ""):
        raise RowError(name, "is empty" if row.get(name) == "" else "must be true or false, not null")
    if isinstance(row[name], list | dict):
        raise RowError(name, "must be true or false")
    values = survey.of(name, row)
    # 0 and -1 together are two steps of a scale
    if all(word in YES or word in NO for word in values) and not {"0", "-1"} <= values.keys():
        return value_text(row[name]) in YES
    numbers = [number for number in map(as_number, values.values()) if number is not None]
    if len(numbers) == len(values):
        middle = f"{(min(numbers) + max(numbers)) / 2:g}"
        advice = f'what is good begins where, say, --columns "{name}={name}>{middle}" puts it'
    else:
        advice = f'say it with --columns "{name}={name}({meanings(values, "true", "false")})"'
    raise ColumnRefusedError(name, f"holds {shown(values)}, not two labels such as true and false; {advice}")
