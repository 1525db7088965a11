"""The forms that rows come in: recognised from their fields, and named to the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mint_train.errors import RowError


def suits_any(_: Mapping[str, Any]) -> bool:
    """Ask nothing of a row beyond its fields."""
    return True


@dataclass(frozen=True, eq=False)
class Form:
    """One form of a row, or of a part of it."""

    name: str
    """As the user reads it: "text prompts with chosen and rejected"."""
    needs: tuple[str, ...]
    """The fields that a row in this form has."""
    read: Callable[[Mapping[str, Any]], Any]
    """Reads what the form is of from a row; it raises RowError where a field is wrong."""
    suits: Callable[[Mapping[str, Any]], bool] = suits_any
    """Tells the form from another one with the same fields, by what kind of values they hold."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of a row."""

    example: Any
    form: str
    """The form's name, as the user reads it."""


def combine(prompts: Sequence[Form], completions: Sequence[Form], make: Callable[[Any, Any], Any]) -> Forms:
    """Make the forms of whole rows: each form of a prompt with each form of its completions.

    Args:
        prompts: forms of prompts, such as `mint_train.rows.prompts.PROMPTS`.
        completions: forms of what a loss wants to know of the completions.
        make: makes the example of what both read.
    """
    return Forms(combined(prompt, answer, make) for answer in completions for prompt in prompts)


def combined(prompt: Form, answer: Form, make: Callable[[Any, Any], Any]) -> Form:
    """Make one form of two."""
    return Form(
        f"{prompt.name} with {answer.name}",
        (*prompt.needs, *answer.needs),
        lambda row: make(prompt.read(row), answer.read(row)),
        lambda row: prompt.suits(row) and answer.suits(row),
    )


class Forms(tuple[Form, ...]):
    """The forms of rows that a loss reads; where two suit equally, none is taken."""

    __slots__ = ()
    __hash__ = object.__hash__  # asked for each row

    def read(self, row: Mapping[str, Any]) -> Reading:
        """Read a row in the one form that it suits.

        Raises:
            RowError: it suits none, or two; a field is missing or wrong.
        """
        form = recognise(row, self)
        return Reading(form.read(row), form.name)


def recognise(row: Mapping[str, Any], forms: Forms) -> Form:
    """Find the form of a row among those that a loss reads; an empty or null field counts as absent.

    Where none suits, the nearest form whose fields are all there is returned, as reading it tells what is
    wrong with them.

    Raises:
        RowError: the row suits two forms, or lacks a field of the nearest.
    """
    present = frozenset(name for name, value in row.items() if value is not None and value != "")
    suiting = [form for form in forms_with(present, forms) if form.suits(row)]
    if len(suiting) == 1:
        return suiting[0]
    if suiting:
        raise ambiguous(suiting)
    nearest = max(forms, key=lambda form: len(present & set(form.needs)))
    for field in nearest.needs:
        if field not in present:
            raise absent(row, field)
    return nearest


@lru_cache(maxsize=256)
def forms_with(present: frozenset[str], forms: Forms) -> tuple[Form, ...]:
    """Return the forms whose fields are all present."""
    return tuple(form for form in forms if present.issuperset(form.needs))


def ambiguous(forms: Sequence[Form]) -> RowError:
    """Show the two readings of a row, and which columns decide between them."""
    one, other = forms[:2]
    own = [form.needs[0] for form in forms[:2]]
    apart = [
        next((field for field in form.needs if field not in rest.needs), field)
        for form, rest, field in ((one, other, own[0]), (other, one, own[1]))
    ]
    return RowError(
        apart[0],
        f'can be read in two ways: "{one.name}" or "{other.name}"; leave one column out, with '
        f"--columns {apart[1]}= for the first or --columns {apart[0]}= for the second",
    )


def absent(row: Mapping[str, Any], field: str) -> RowError:
    """Say that a field is missing, null or empty."""
    if field not in row:
        has = ", ".join(map(repr, row)) or "no fields"
        return RowError(
            field, f"missing; the row has {has}; name the right one with --columns {field}=COLUMN"
        )
    return RowError(field, "must be given, not null" if row[field] is None else "is empty")


def rename(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a row under the names of the forms.

    Args:
        row: the row as it stands in the data.
        columns: by field of a form, the column that holds it; "" leaves the field's own column out.

    Raises:
        RowError: the row has no such column.
    """
    taken = {*columns, *columns.values()}
    renamed = {name: value for name, value in row.items() if name not in taken}
    for field, column in columns.items():
        if column:
            if column not in row:
                has = ", ".join(map(repr, row)) or "no fields"
                raise RowError(
                    column, f"missing, though --columns {field}={column} asks for it; the row has {has}"
                )
            renamed[field] = row[column]
    return renamed
