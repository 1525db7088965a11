"""The forms of one answer: in a column of its own, or in a conversation that ends with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mint_train.rows.answers import read_answers
from mint_train.rows.form import Answers, Form
from mint_train.rows.messages import are_messages
from mint_train.rows.prompts import is_dialogue
from mint_train.rows.values import from_json

ONE_ANSWER = ("completion", "output", "response", "answer", "solution", "generation")
"""Columns that hold one answer."""
CONVERSATIONS = ("messages", "conversations")
"""Columns that hold a whole conversation, or the prompt of an answer in another column."""


def single_answers() -> list[Form]:
    """Return the forms of one answer: `completion`, `output`, ... or the assistant's turns of `messages`."""
    whole = [*map(conversation_column, CONVERSATIONS)]
    # a refusal names the first of these whose column cannot be a prompt
    return [*whole, *map(answer_column, ONE_ANSWER), conversation_column("conversation")]


def answer_column(field: str) -> Form:
    """Make the form of an answer in a column of its own."""

    def suits(row: Mapping[str, Any]) -> bool:
        found = from_json(row[field])
        return not isinstance(found, list) or are_messages(found)

    return Form(field, (field,), lambda row, _: read(row, field), suits)


def conversation_column(field: str) -> Form:
    """Make the form of a conversation with its answers in it."""

    def suits(row: Mapping[str, Any]) -> bool:
        return is_dialogue(row[field]) or are_messages(from_json(row[field]))

    return Form(field, (field,), lambda row, _: read(row, field), suits)


def read(row: Mapping[str, Any], field: str) -> Answers:
    """Read the answer, and of a whole conversation all that the assistant says in it.

    Raises:
        RowError: the column holds something else, or is empty.
    """
    return Answers(read_answers([row[field]], [field]), [field], every_turn=True)
