"""Rows of pairs that say more: further fields beside a pair, in any of DPO's forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mint_train.plugin import (
    AttachedDatum,
    Completion,
    Forms,
    Prompt,
    Renderer,
    RowError,
    attach,
    number,
    read_answer,
)
from mint_train_dpo import plugin as dpo
from mint_train_dpo.rows import FORMS, PreferencePair

Values: TypeAlias = Mapping[str, tuple[float, float]]
"""By name, what is attached to the chosen and to the rejected datum."""


@dataclass(frozen=True)
class ExtendedPair:
    """A pair, to which a loss adds what else it reads of the row."""

    pair: PreferencePair

    @property
    def prompt(self) -> Prompt:
        """The prompt of the pair: held-out rows share no prompt with those that are trained on."""
        return self.pair.prompt


@dataclass(frozen=True)
class RicherPair(ExtendedPair):
    """A pair, and numbers of its row that are attached to both of its datums."""

    values: Values


def forms_with(read_values: Callable[[Mapping[str, Any]], Values], columns: Sequence[str]) -> Forms:
    """Return every form of a pair, with further fields beside it.

    Args:
        read_values: reads the further fields of a row; raises RowError where one is missing or wrong.
        columns: their names.
    """
    return FORMS.extended(lambda row: (read_values(row), columns), RicherPair)


def flatten_richer(example: RicherPair, renderer: Renderer) -> Sequence[AttachedDatum]:
    """Flatten a pair into [chosen, rejected], each with its values attached."""
    return [
        attach(datum, **{name: sides[side] for name, sides in example.values.items()})
        for side, datum in enumerate(dpo.flatten(example.pair, renderer))
    ]


def read_third(row: Mapping[str, Any], name: str, needed: str) -> tuple[Completion, list[str]]:
    """Read a third completion beside a pair, and name its column.

    Args:
        row: a row of the data.
        name: the column.
        needed: what the loss does with it, for the message if it is missing.

    Raises:
        RowError: it is missing, wrong or a whole conversation.
    """
    if row.get(name) is None:
        raise RowError(name, f"is missing; {needed}")
    found = read_answer(row[name], name)
    if not isinstance(found, str) and found[0]["role"] != "assistant":
        raise RowError(name, f"begins with a message of the {found[0]['role']}, not of the assistant")
    return found, [name]


def bounded(row: Mapping[str, Any], name: str, least: float, most: float) -> float:
    """Read a field that holds a number within bounds.

    Raises:
        RowError: it is missing, not a number, or outside the bounds.
    """
    if row.get(name) is None:
        raise RowError(name, f"is missing; this loss needs a number from {least:g} to {most:g}")
    value = number(row[name], name)
    if not least <= value <= most:
        raise RowError(name, f"is {value:g}; it must be from {least:g} to {most:g}")
    return value
