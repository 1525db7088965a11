"""The forms of one answer: in a column of its own, or in a conversation that ends with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mint_train.rows.answers import read_answers
from mint_train.rows.form import Answers, Form
from mint_train.rows.messages import are_messages
from mint_train.rows.prompts import has_none_of, is_dialogue
from mint_train.rows.values import from_json
from mint_train.rows.whole_conversations import answered

ONE_ANSWER = ("completion", "output", "response", "answer", "solution", "generation")
"""Columns that hold one answer."""
CONVERSATIONS = ("messages", "conversations", "conversation")
"""Columns that hold a whole conversation, unless another column has the answer to it."""


def single_answers() -> list[Form]:
    """Return the forms of one answer: `completion`, `output`, ... or the assistant's turns of `messages`."""
    return [*map(answer_column, ONE_ANSWER), *map(conversation_column, CONVERSATIONS)]


def answer_column(field: str) -> Form:
    """Make the form of an answer in a column of its own."""

    def suits(row: Mapping[str, Any]) -> bool:
        found = from_json(row[field])
        return not isinstance(found, list) or are_messages(found)

    return Form(field, (field,), lambda row, _: read(row, field), suits)


def conversation_column(field: str) -> Form:
    """Make the form of a conversation with its answers in it."""

    def suits(row: Mapping[str, Any]) -> bool:
        if not is_dialogue(row[field]) and not are_messages(from_json(row[field])):
            return False
        return answered(row[field]) is not None or has_none_of(row, *ONE_ANSWER)

    return Form(field, (field,), lambda row, _: read(row, field), suits)


def read(row: Mapping[str, Any], field: str) -> Answers:
    """Read the answer, and of a whole conversation all that the assistant says in it.

    Raises:
        RowError: it is no answer, or empty.
    """
    return Answers(read_answers([row[field]], [field]), [field], every_turn=True)
