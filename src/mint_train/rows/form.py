"""One form of a part of a row: its prompt, or its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mint_train.rows.messages import ChatMessage


def suits_any(_: Mapping[str, Any]) -> bool:
    """Accept every row that has the fields."""
    return True


@dataclass(frozen=True, eq=False)
class Form:
    """One form of a part of a row."""

    name: str
    """As the user reads it: "text prompts", "chosen and rejected"."""
    needs: tuple[str, ...]
    """The fields that a row in this form has."""
    read: Callable[..., Any]
    """Reads the part from a row; it raises RowError where a field is wrong."""
    suits: Callable[[Mapping[str, Any]], bool] = suits_any
    """Whether a row that has the fields is in this form, by the kind of their values."""
    checks: tuple[str, ...] = ()
    """Fields that what was read is compared with, and that nothing is trained of."""


@dataclass(frozen=True)
class Answers:
    """What a form read of a row's answers, before their prompt is split off."""

    completions: Sequence[str | list[ChatMessage]] = ()
    """Each one answer, or a whole conversation that ends with it; the best first where they are graded."""
    fields: Sequence[str] = ()
    """What the row calls each."""
    value: Any = None
    """What else the loss wants: labels, grades, tokens."""
    read: frozenset[str] = field(default_factory=frozenset)
    """Columns that were read beside those that the form needs."""
    every_turn: bool = False
    """Whether all that the assistant says in a whole conversation is the answer, not only its last turn."""
    further: Sequence[Answers] = ()
    """Those of further groups in the same row, each given as whole conversations."""
