"""Single values of a row: text, truth, numbers, and lists and objects that were written as text."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.row import kind

JSON_STARTS = ("[", "{")
STRING = "|".join(
    rf"{quote}(?:[^{quote}\\\n]|\\(?:[\\'\"abfnrtv]|x[0-9a-f]{{2}}|u[0-9a-f]{{4}}|U[0-9a-f]{{8}}))*{quote}"
    for quote in "'\""
)
"""A string as Python shows it."""
PYTHON = re.compile(rf"{STRING}|\b(?:True|False|None|nan)\b")
CONSTANTS = {"True": "true", "False": "false", "None": "null", "nan": "null"}
OBJECTS = re.compile(r"""(?:array\(|[\[\s])*\{\s*['"]\w+['"]\s*:""")
ROLE = re.compile(
    r"""['"](?:role|from)['"]\s*:\s*['"](?:system|developer|user|human|assistant|gpt|model|bot|tool|function)"""
)
CONTENT = re.compile(r"""['"](?:content|value)['"]\s*:""")
STRINGS_OF_NUMPY = re.compile(rf"\[(?:{STRING})(?:\s+(?:{STRING}))+\]")

MAX_SCORE = 1e100
"""Far above any score, and far below where differences of floats overflow."""


def given(row: Mapping[str, Any], field: str) -> bool:
    """Return whether a row has something in a field: not null, and not an empty text or list."""
    return row.get(field) not in (None, "", [], {})


def text(value: object, field: str) -> str:
    """Return a value that must be text with something in it.

    Raises:
        RowError: it is another type, empty, messages as a program printed them, or holds half a character (a
            lone surrogate).
    """
    if not isinstance(value, str):
        raise RowError(field, f"must be text, not {kind(value)}")
    if not value.strip():
        raise RowError(field, "is empty")
    if is_printed(value):
        problem = "holds messages or a list as text that is not read here"
        raise RowError(field, f"{problem}; write a list, or one as JSON text (json.dumps)")
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


def is_printed(value: str) -> bool:
    """Return whether a text is messages, or several texts as numpy prints them, and not what someone said."""
    said = value.strip()
    if not said.startswith((*JSON_STARTS, "array(")):
        return False
    if STRINGS_OF_NUMPY.fullmatch(said):
        return True
    if not (ROLE.search(said) and CONTENT.search(said)):
        return False
    found = from_json(said)
    if not isinstance(found, str):
        first = found[0] if isinstance(found, list) and found else found
        return isinstance(first, Mapping) and not first.keys().isdisjoint(("role", "from"))
    ends = said.endswith(("]", "}", ")")) or said.count("{") > said.count("}")  # whole, or cut off
    return ends and OBJECTS.match(said) is not None


def from_json(value: object, field: str | None = None) -> Any:
    """Return what a text says that is a list or an object in JSON, or as Python shows one.

    Args:
        value: a text, or anything else, which is returned as it is.
        field: where it stands, if what it says is trained; without it the text is only looked at.

    Raises:
        RowError: a field is given, and a key stands twice in an object of the text.
    """
    if isinstance(value, str) and value.lstrip().startswith(JSON_STARTS):
        pairs = None if field is None else partial(once, field)
        try:
            return json.loads(value, object_pairs_hook=pairs)
        except (ValueError, RecursionError):
            pass
        try:
            return json.loads(PYTHON.sub(as_json, value), object_pairs_hook=pairs)
        except (ValueError, SyntaxError, RecursionError):
            return value
    return value


def as_json(found: re.Match[str]) -> str:
    """Return a string or a constant of Python as JSON writes it."""
    return CONSTANTS.get(found[0]) or json.dumps(ast.literal_eval(found[0]))


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
