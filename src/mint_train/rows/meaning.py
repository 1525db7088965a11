"""Which columns of a row change its meaning, so that leaving them unread would be silently wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.columns import flag
from mint_train.rows.conversations import says_nothing_new, texts_of
from mint_train.rows.messages import MEDIA, are_messages, is_assistants
from mint_train.rows.values import as_number, from_json, given
from mint_train.rows.verdicts import VERDICTS

MEANINGFUL = frozenset(
    {
        *MEDIA, *VERDICTS, "tools", "functions", "available_tools", "system", "system_prompt",
        "system_message", "context", "contexts", "input", "history", "document", "documents", "passage",
        "passages", "background", "knowledge", "evidence", "persona", "initial_reason_steps",
        "chat_template_kwargs", "prompt", "question", "instruction", "query", "messages", "conversations",
        "few_shot", "examples", "weight", "weights", "sample_weight", "hint", "hints", "instructions",
        "system_instruction", "system_instructions", "preamble", "reasoning_content",
        "reasoning", "thinking", "thinking_trajectories", "thought", "thoughts", "cot", "chain_of_thought",
    }
)  # fmt: skip
"""Columns that belong to a prompt, to what is trained of a row, or to its verdict."""
WORD_ENDS = re.compile(r"(?<=[a-z])(?=[A-Z])|[\s_-]+")


@lru_cache(maxsize=4096)
def plain_name(name: str) -> str:
    """Return a column's name as fields are written: "System Prompt" is system_prompt."""
    return "_".join(WORD_ENDS.sub(" ", name).lower().split())


def unread_columns(
    row: Mapping[str, Any],
    read: frozenset[str],
    known: tuple[object, Sequence[object]],
    reserved: frozenset[str] = frozenset(),
) -> list[str]:
    """Return the columns that a form does not read and that change nothing, such as ids and sources.

    Args:
        row: the row, its columns renamed.
        read: the columns that the form reads.
        known: the prompt and the completions that were read, the best first; a column that says nothing
            beyond them does not count.
        reserved: columns that other losses read of such rows.

    Raises:
        RowError: a column would change the meaning.
    """
    left = [name for name in row if name not in read]
    for name in left:
        field = plain_name(name)
        if field in reserved and given(row, name):
            raise RowError(name, reserved_for_others(name))
        if field in MEANINGFUL and given(row, name) and (field in MEDIA or changes(field, row[name], known)):
            raise RowError(name, unread(name, field))
    return left


def changes(field: str, value: object, known: tuple[object, Sequence[object]]) -> bool:
    """Return whether a column that is not read says something else than what is known."""
    if field in VERDICTS and isinstance(value, str):
        # a verdict may repeat the best answer; that it occurs in one says nothing
        return value.strip() not in texts_of(known[1][:1])
    return is_new(value, known)


def is_new(value: object, known: object) -> bool:
    """Return whether a value says something that is not known: a text, a number or a truth."""
    value = from_json(value)
    if are_messages(value) and isinstance(value, list):
        # an assistant's turn beside the answers is another answer, and not a part of the prompt
        value = [message for message in value if not is_assistants(message)]
    numbers = (
        as_number(value) is not None
        or isinstance(value, int | float)
        or (isinstance(value, list) and any(isinstance(item, int | float) for item in value))
    )
    return numbers or not says_nothing_new(value, known)


def reserved_for_others(name: str) -> str:
    """Say that other losses read a column and this one does not, and the flag that leaves it out."""
    return f"is for other losses, and this one does not read it; leave it out with {flag({name: ''})}"


def unread(name: str, field: str) -> str:
    """Say that a column would be dropped, and the flags that read it or leave it out."""
    leave = f"leave it out with {flag({name: ''})}"
    if field in MEDIA:
        return f"holds what only a model for more than text reads; {leave}"
    if name != field:
        read = f'if it is the field "{field}", give {flag({field: name})}'
        return f"is not read under this name; {read}, or {leave}"
    return f"is not read in this form, and may change what is trained; {leave}"
