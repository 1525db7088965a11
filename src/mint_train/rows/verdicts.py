"""Which of two answers is better, and whether one is good: columns read as a whole, never value by value.

A value such as 1 says nothing alone: it may be a name ("response 1"), an index, a truth, or a strength that
prefers the second. All the values of the column together decide, and where they fit no reading, or two, the
column is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.columns import flag, parse_column, value_text
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
    "both bad",
)
MOST_VALUES = 24
"""Different values that are remembered of a column; a column with more is not one of verdicts."""
SHOWN = 6
LONGEST = 40
"""Characters of a value that are shown."""
NO_VALUE = re.compile(r"[;=()|]")
"""What `--columns` reads as its own signs in the values of a column."""

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


class NoVerdictError(RowError):
    """Nothing says which of two answers is better; the problem says no more than that."""


@dataclass
class Survey:
    """The different values of the columns that hold verdicts and labels, over all rows."""

    values: dict[str, dict[str, object]] = field(default_factory=dict)
    """By field, each different value under its text, at most `MOST_VALUES` of them."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """By field, what `--columns` takes it from."""

    def note(self, row: Mapping[str, Any], names: Iterable[str]) -> None:
        """Add the values of a row."""
        for name in names:
            value = row[name]
            if is_blank(value) or isinstance(value, list | dict):
                continue
            seen = self.values.setdefault(name, {})
            if len(seen) < MOST_VALUES:
                seen.setdefault(value_text(value), value)

    def of(self, name: str, row: Mapping[str, Any]) -> dict[str, object]:
        """Return the values of a column, those of a row included."""
        found = self.values.get(name)
        return found if found else {value_text(row[name]): row[name]}

    def column(self, name: str) -> str:
        """Return the column of the data that a field is taken from."""
        given = self.columns.get(name)
        return parse_column(given).path if given else name


def is_blank(value: object) -> bool:
    """Return whether a cell holds nothing."""
    return value is None or (isinstance(value, str) and not value.strip())


def some_of(values: Mapping[str, object]) -> list[str]:
    """Return the first values of a column, numbers in their order."""
    return sorted(values, key=lambda text: (as_number(text) is None, as_number(text) or 0.0, text))[:SHOWN]


def shown(values: Mapping[str, object]) -> str:
    """Return some values of a column as text."""
    some = [f"{value:.{LONGEST}}" for value in some_of(values)]
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
    said = as_name(value_text(row[name]))
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
    if all(as_name(word) in names or word in TIES for word in values) and not any(
        isinstance(value, bool) for value in values.values()
    ):
        return names.get(said)
    if name in TRUE_OF_FIRST and set(values) <= {"0", "1", "true", "false"} and not set(sides) & {"0", "1"}:
        return int(said in ("0", "false"))
    problem = f"holds {shown(values)}, which does not say which of {fields[0]} and {fields[1]} is better"
    advice = choose(name, survey, values, [side.lower() for side in sides])
    raise ColumnRefusedError(name, f"{problem}; {advice}")


def as_name(word: str) -> str:
    """Return a value as the names of columns are written: "response a" is response_a."""
    return "_".join(word.split())


def choose(name: str, survey: Survey, values: Mapping[str, object], words: Sequence[str]) -> str:
    """Say how to give each value of a column its meaning; the flag is refused until one of two is chosen."""
    some = some_of(values)
    if any(NO_VALUE.search(value) or len(value) > LONGEST for value in some):
        return f"write {words[0]} or {words[1]} there instead"
    meanings = ";".join(f"{value}={words[0]}|{words[1]}" for value in some)
    chosen = flag({name: f"{survey.column(name)}({meanings})"})
    return f"say {words[0]} or {words[1]} for each value in {chosen}"


def is_good(row: Mapping[str, Any], name: str, survey: Survey) -> bool:
    """Return whether a label calls an answer good.

    Raises:
        RowError: it is empty.
        ColumnRefusedError: the column holds more than two labels, such as ratings.
    """
    if is_blank(row.get(name)):
        raise RowError(name, "must be true or false, not null" if row.get(name) is None else "is empty")
    if isinstance(row[name], list | dict):
        raise RowError(name, "must be true or false")
    values = survey.of(name, row)
    # 0 and -1 together are two steps of a scale
    if all(word in YES or word in NO for word in values) and not {"0", "-1"} <= values.keys():
        return value_text(row[name]) in YES
    numbers = [number for number in map(as_number, values.values()) if number is not None]
    if len(numbers) == len(values):
        advice = f"say from which number on it is good with {flag({name: f'{survey.column(name)}>=NUMBER'})}"
        advice += ", or up to which one with <="
    else:
        advice = choose(name, survey, values, ["true", "false"])
    raise ColumnRefusedError(name, f"holds {shown(values)}, not two labels such as true and false; {advice}")
