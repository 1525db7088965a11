"""`--columns`: fields of the forms under the names, and from the values, that the data has."""

from __future__ import annotations

import json
import operator
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mint_train.errors import OptionError, RowError
from mint_train.rows.values import as_number, from_json
from mint_train.settings.fields import COMMA_OUTSIDE

THRESHOLD = re.compile(r"(?P<path>.+?)\s*(?P<sign>>=|<=|>|<)\s*(?P<bound>[-+.\w]+)")
WORDS = re.compile(r"(?P<path>.+?)\((?P<words>[^()]*)\)")
SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
OPEN = "|"
"""`label(up=true|false)`, as refusals show it, leaves open which of the two a value means."""
LEAST = "min"
"""`strength(min=2)`: numbers nearer to 0 than 2 count as 0, which prefers nothing."""


@dataclass(frozen=True)
class ColumnSpec:
    """What one field is made of: a column, by its path, and what becomes of its value."""

    path: str
    sign: str = ""
    bound: float = 0.0
    words: tuple[tuple[str, str], ...] = ()
    """The values of the column, as text, and what each stands for."""

    def of(self, row: Mapping[str, Any], field: str) -> Any:
        """Return the value of the field for a row.

        Raises:
            RowError: the row has no such column, or a value of it has no meaning.
        """
        found = follow(row, self.path)
        if found is MISSING:
            has = ", ".join(map(repr, row)) or "no fields"
            problem = f"missing, though {flag({field: self.path})} asks for it; the row has {has}"
            raise RowError(self.path, problem)
        if self.sign:
            number = as_number(found)
            if number is None:
                raise RowError(
                    self.path, f"must be a number to be compared with {self.bound:g}, not {found!r:.40}"
                )
            return SIGNS[self.sign](number, self.bound)
        return self._said(found) if self.words else found

    def _said(self, found: object) -> object:
        """Return what a value stands for."""
        words = dict(self.words)
        if LEAST in words:
            number, least = as_number(found), as_number(words[LEAST])
            if number is None or least is None:
                raise RowError(self.path, f"must be a number to be compared with {LEAST}={words[LEAST]}")
            return number if abs(number) >= least else 0
        written = value_text(found)
        if written not in words:
            meanings = ";".join(f"{value}={meaning}" for value, meaning in self.words)
            raise RowError(self.path, f"is {found!r:.40}, which ({meanings}) says nothing of")
        return words[written]


def flag(columns: Mapping[str, str]) -> str:
    """Return what gives fields their columns: the option, quoted for a shell, or a table if it cannot."""
    if any("=" in field or "," in field or COMMA_OUTSIDE.search(column) for field, column in columns.items()):
        quoted = (
            f"{json.dumps(field, ensure_ascii=False)} = {json.dumps(column, ensure_ascii=False)}"
            for field, column in columns.items()
        )
        return f"columns = {{ {', '.join(quoted)} }} in a config file"
    return f"--columns {shlex.quote(','.join(f'{field}={column}' for field, column in columns.items()))}"


def value_text(value: object) -> str:
    """Return a value as a user writes it: 1.0 is 1, true is true, and case does not count."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().lower()


class Missing:
    """The value of a column that is not there."""


MISSING = Missing()


def follow(row: Mapping[str, Any], path: str) -> Any:
    """Return what is at a path such as `question.full_text` or `answers.0.text`, or MISSING."""
    if (name := actual_name(row, path)) in row:
        return row[name]
    found: Any = row
    for part in path.split("."):
        found = from_json(found, path)
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            return MISSING
    return found


@lru_cache(maxsize=256)
def parse_column(column: str) -> ColumnSpec:
    """Read what stands behind `FIELD=`: `COLUMN`, `COLUMN>=3`, `COLUMN(1=a;0=b)` or `COLUMN(min=2)`.

    Raises:
        OptionError: a bound is not a number, or a meaning is missing or left open.
    """
    if found := THRESHOLD.fullmatch(column):
        bound = as_number(found["bound"])
        if bound is None:
            raise OptionError(f"--columns: {column}: {found['bound']} is not a number")
        return ColumnSpec(found["path"].strip(), found["sign"], bound)
    if found := WORDS.fullmatch(column):
        pairs = [pair.partition("=") for pair in found["words"].split(";")]
        if not all(value.strip() and equals and meaning.strip() for value, equals, meaning in pairs):
            raise OptionError(f"--columns: {column}: write the values as ({LEAST}=2) or (1=a;0=b)")
        if open_one := next((f"{value}={meaning}" for value, _, meaning in pairs if OPEN in meaning), None):
            raise OptionError(f"--columns: {column}: {open_one} names two meanings; leave only the right one")
        words = tuple((value.strip().lower(), meaning.strip()) for value, _, meaning in pairs)
        return ColumnSpec(found["path"].strip(), words=words)
    return ColumnSpec(column)


def rename(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a row under the names of the forms.

    Args:
        row: the row as it stands in the data.
        columns: by field of a form, what it is made of; "" leaves the field's own column out.

    Raises:
        RowError: the row has no such column.
        OptionError: a column is malformed.
    """
    specs = {
        field: ColumnSpec(column) if column in row else parse_column(column)
        for field, column in columns.items()
        if column
    }
    taken = {actual_name(row, name) for name in (*columns, *(spec.path for spec in specs.values()))}
    renamed = {name: value for name, value in row.items() if name not in taken}
    return renamed | {field: spec.of(row, field) for field, spec in specs.items()}


def actual_name(row: Mapping[str, Any], name: str) -> str:
    """Return the name of a column as the row has it: space around it does not count."""
    if name in row:
        return name
    return next((actual for actual in row if actual.strip() == name.strip()), name)
