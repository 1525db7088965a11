"""Whole conversations in a row's columns, whose prompt stands in them and perhaps nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.answers import read_answers
from mint_train.rows.conversations import split_shared, texts_of
from mint_train.rows.form import Answers
from mint_train.rows.messages import ChatMessage, are_messages
from mint_train.rows.prompts import PROMPTS, is_dialogue
from mint_train.rows.values import from_json


def answered(value: object) -> list[ChatMessage] | None:
    """Return the messages of a value that end with the assistant's; None where it has none or is wrong."""
    if not is_dialogue(value) and not are_messages(from_json(value)):
        return None
    with suppress(RowError):  # whoever reads the column says what is wrong
        (messages,) = read_answers([value], ["conversation"])
        if isinstance(messages, list) and messages[-1]["role"] == "assistant":
            return messages
    return None


def whole_conversations(row: Mapping[str, Any]) -> dict[str, list[ChatMessage]]:
    """Return the columns that hold conversations from their beginning to an answer."""
    found = {name: messages for name, value in row.items() if (messages := answered(value))}
    return {name: messages for name, messages in found.items() if messages[0]["role"] != "assistant"}


def distinct(conversations: Mapping[str, list[ChatMessage]]) -> dict[str, list[ChatMessage]]:
    """Return each conversation once, under the first column that holds it."""
    found: dict[str, list[ChatMessage]] = {}
    for name, messages in conversations.items():
        if messages not in found.values():
            found[name] = messages
    return found


def several_share_a_prompt(row: Mapping[str, Any]) -> bool:
    """Return whether a row has several whole conversations, and each two of them part in the same answer."""
    found = distinct(whole_conversations(row))
    if len(found) < 2:
        return False
    with suppress(RowError):
        shared, rest = split_shared(list(found.values()), list(found))
        firsts = [messages[0] for messages in rest]
        return bool(shared) and all(firsts.count(first) == 1 for first in firsts)
    return False


def one_has_the_prompt(row: Mapping[str, Any]) -> bool:
    """Return whether a row has one whole conversation, and no other prompt in another column."""
    found = whole_conversations(row)
    if len(distinct(found)) != 1:
        return False
    before = set(texts_of(next(iter(found.values()))[:-1]))
    beside = {name for name, value in row.items() if value not in (None, "") and name not in found}
    prompts = [form for form in PROMPTS if beside.issuperset(form.needs) and form.suits(row)]
    return all(before.issuperset(texts_of([row[field] for field in form.needs])) for form in prompts)


def read_conversations(row: Mapping[str, Any], read: frozenset[str]) -> Answers:
    """Read whole conversations as answers, whose value is the row itself.

    Args:
        row: the row, its columns renamed.
        read: columns that count as read too.
    """
    found = whole_conversations(row)
    each = distinct(found)
    return Answers(list(each.values()), list(each), row, read.union(found))
