"""A row of data, good or bad, before any interpretation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from mint_train.errors import Source


@dataclass(frozen=True, slots=True)
class Row:
    """One row, uninterpreted."""

    values: dict[str, Any]
    source: Source


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read or trained on, and why; the rows after it can."""

    source: Source
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"

    def describe(self) -> dict[str, Any]:
        """Return its file, its line or row, and the reason, as JSON has them."""
        return {"path": self.source.path, self.source.unit: self.source.line, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Example:
    """What a plugin made of a row, with where the row came from."""

    value: Any
    source: Source
    form: str | None = None
    """The form that the row was read in, where the loss knows forms."""
    weight: float = 1.0
    """What the example counts in its batch's mean."""


def make_row(value: object, source: Source) -> Row | BadRow:
    """Make a row of a value that must be an object with fields."""
    if isinstance(value, dict):
        return Row(value, source)
    return BadRow(source, f"a row must be an object with fields, not {kind(value)}")


KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
    bytes: "bytes",
    Decimal: "a decimal",
    datetime: "a time",  # a table's types, which JSON does not have
    time: "a time",
    date: "a date",
    timedelta: "a duration",
}


def kind(value: object) -> str:
    """Name the type of a value as a user would."""
    known = (name for base in type(value).__mro__ if (name := KINDS.get(base)))
    return next(known, type(value).__name__)
