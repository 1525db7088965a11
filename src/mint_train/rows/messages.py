"""Text and chat messages in rows: the forms that they come in, made one. For plugins' `parse_row` hooks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.row import kind

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}

ChatMessage = dict[str, str]


def require(row: Mapping[str, Any], field: str) -> Any:
    """Return a field's value.

    Raises:
        RowError: the row does not have it.
    """
    if field not in row:
        raise RowError(field, f"missing; the row has {', '.join(map(repr, row)) or 'no fields'}")
    return row[field]


def text(value: object, field: str) -> str:
    """Return a value that must be text with something in it.

    Raises:
        RowError: it is another type, empty, or holds half a character (a lone surrogate).
    """
    if not isinstance(value, str):
        raise RowError(field, f"must be text, not {kind(value)}")
    if not value.strip():
        raise RowError(field, "is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        problem = "holds half of a character (a lone surrogate), which no tokenizer can read"
        raise RowError(field, problem) from None
    return value


def truth(value: object, field: str) -> bool:
    """Return true or false; a CSV has them as text.

    Raises:
        RowError: it is neither.
    """
    written = value.strip().lower() if isinstance(value, str) else value
    for truth, words in ((True, "true"), (False, "false")):
        if written is truth or written == words:
            return truth
    raise RowError(field, f"must be true or false, not {kind(value) if written else 'empty'}")


def number(value: object, field: str) -> float:
    """Return a finite number; a CSV has it as text.

    Raises:
        RowError: it is something else.
    """
    found = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            found = float(value)
        except (ValueError, OverflowError):
            found = math.nan
    if not math.isfinite(found):
        raise RowError(field, f"must be a finite number, not {value!r:.40}")
    return found


def chat_message(value: object, field: str) -> ChatMessage:
    """Return a message as `role` and `content`, from that form or ShareGPT's `from` and `value`.

    Raises:
        RowError: it is neither, or its text is empty.
    """
    if not isinstance(value, Mapping):
        raise RowError(field, f"must be a message with role and content, not {kind(value)}")
    if "role" in value:
        role = text(value["role"], f"{field}.role")
        return {"role": role, "content": text(value.get("content"), f"{field}.content")}
    if "from" in value:
        name = text(value["from"], f"{field}.from")
        if name not in SHAREGPT_ROLES:
            raise RowError(f"{field}.from", f'"{name}" is none of {", ".join(SHAREGPT_ROLES)}')
        return {"role": SHAREGPT_ROLES[name], "content": text(value.get("value"), f"{field}.value")}
    raise RowError(field, "is no message: it has neither role and content nor from and value")


def chat_messages(value: object, field: str) -> list[ChatMessage]:
    """Return a list of messages, at least one.

    Raises:
        RowError: naming the message that is wrong.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RowError(field, f"must be a list of messages, not {kind(value)}")
    if not value:
        raise RowError(field, "is an empty list of messages")
    return [chat_message(message, f"{field}[{place}]") for place, message in enumerate(value)]


def prompt(value: object, field: str) -> str | list[ChatMessage]:
    """Return a prompt: text, or messages that leave the turn to the assistant.

    Raises:
        RowError: it is neither, or its last message is the assistant's own.
    """
    if isinstance(value, str):
        return text(value, field)
    messages = chat_messages(value, field)
    if messages[-1]["role"] == "assistant":
        raise RowError(field, "ends with the assistant's own message; a prompt must leave the turn to it")
    return messages


def completion(value: object, field: str) -> str:
    """Return a completion's text: plain, or of one assistant message, alone or in a list.

    Raises:
        RowError: it is something else, or more than one message.
    """
    if isinstance(value, str):
        return text(value, field)
    messages = chat_messages(value, field) if isinstance(value, list) else [chat_message(value, field)]
    if len(messages) != 1:
        raise RowError(field, f"holds {len(messages)} messages where the assistant's one answer is needed")
    if messages[0]["role"] != "assistant":
        raise RowError(field, f"is a message of the {messages[0]['role']}, not of the assistant")
    return messages[0]["content"]
