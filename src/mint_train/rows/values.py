"""Single values of a row: text, truth, numbers, and JSON that was written as text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.row import kind

JSON_STARTS = ("[", "{")

MAX_SCORE = 1e100
"""Far above any score, and far below where differences of floats overflow."""


def given(row: Mapping[str, Any], field: str) -> bool:
    """Return whether a row has something in a field: not null, and not an empty text or list."""
    return row.get(field) not in (None, "", [], {})


def text(value: object, field: str) -> str:
    """Return a value that must be text with something in it.

    Raises:
        RowError: it is another type, empty, or holds half a character (a lone surrogate).
    """
    if not isinstance(value, str):
        raise RowError(field, f"must be text, not {kind(value)}")
    if not value.strip():
        raise RowError(field, "is empty")
    return whole_characters(value, field)


def whole_characters(value: str, field: str) -> str:
    """Return a text, empty or not.

    Raises:
        RowError: it holds a lone surrogate.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        problem = "holds half of a character (a lone surrogate), which no tokenizer can read"
        raise RowError(field, problem) from None
    return value


def number(value: object, field: str) -> float:
    """Return a finite number; a CSV has it as text.

    Raises:
        RowError: it is something else.
    """
    found = as_number(value)
    if found is None:
        raise RowError(field, f"must be a finite number, not {value!r:.40}")
    return found


def as_number(value: object) -> float | None:
    """Return a finite number, given as one or as text, or None for anything else."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            found = float(value)
        except (ValueError, OverflowError):
            return None
        return found if math.isfinite(found) else None
    return None


def from_json(value: object, field: str | None = None) -> Any:
    """Return what a text of JSON says, where it is a list or an object; any other value as it is.

    Args:
        value: a text, or anything else.
        field: where it stands, if what it says is trained; without it the text is only looked at.

    Raises:
        RowError: a field is given, and a key stands twice in an object of the text.
    """
    if isinstance(value, str) and value.lstrip().startswith(JSON_STARTS):
        try:
            return json.loads(value, object_pairs_hook=None if field is None else partial(once, field))
        except (ValueError, RecursionError):
            return value
    return value


def once(field: str, members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its members.

    Raises:
        RowError: a key stands twice.
    """
    made = dict(members)
    if len(made) < len(members):
        raise RowError(field, stands_twice(key_twice(members)))
    return made


def key_twice(members: Sequence[tuple[str, Any]]) -> str:
    """Return the first key that stands twice among members, of which the later value would win."""
    names = [name for name, _ in members]
    return next(name for name in names if names.count(name) > 1)


def stands_twice(key: str) -> str:
    """Say that a key stands twice, and what to do."""
    return f'the key "{key}" stands twice in one object; keep one of them'


def grade(value: object, field: str) -> float:
    """Return a finite number.

    Raises:
        RowError: it is something else.
    """
    if value is None or isinstance(value, bool | list | dict):
        raise RowError(field, f"must be a number, not {kind(value)}")
    found = number(value, field)
    if abs(found) >= MAX_SCORE:
        raise RowError(field, f"is {found}; scores must be finite and below {MAX_SCORE:g} in size")
    return found
