"""Trees of replies, as OpenAssistant has them: the user's turn, its answers, and the turns after each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.messages import ChatMessage, chat_message
from mint_train.rows.row import kind


@dataclass(frozen=True)
class ComparedTurn:
    """A turn of the user below the first, with two or more graded answers."""

    above: list[ChatMessage]
    """The conversation up to that turn, which is its last message."""
    replies: list[Mapping[str, Any]]
    """The graded answers."""
    positions: list[int]
    """Where each of them stands among all answers to the turn."""
    field: str
    """Where the answers stand in the row."""


def compared_turns(root: Mapping[str, Any], grades: Sequence[str]) -> Iterator[ComparedTurn]:
    """Find the turns of a tree that compare answers, its first turn left out.

    An answer without a grade, or alone, is compared with nothing; it only leads on to what follows it.

    Args:
        root: the first turn, with `role`, `text` and `replies`; it stands in the row's `prompt`.
        grades: the fields that grade an answer.

    Raises:
        RowError: a reply is not an object, or its text or its role is wrong.
    """
    waiting = [(root, [as_message(root, "prompt")], "prompt.replies")]
    while waiting:
        node, above, at = waiting.pop()
        replies = replies_of(node, at)
        graded = [n for n, reply in enumerate(replies) if any(reply.get(key) is not None for key in grades)]
        if node is not root and above[-1]["role"] == "user" and len(graded) > 1:
            for n in graded:
                if as_message(replies[n], f"{at}[{n}]")["role"] != "assistant":
                    raise RowError(f"{at}[{n}].role", "is not the assistant's, though it answers the user")
            yield ComparedTurn(above, [replies[n] for n in graded], graded, at)
        further = [
            (reply, [*above, as_message(reply, f"{at}[{n}]")], f"{at}[{n}].replies")
            for n, reply in enumerate(replies)
            if reply.get("replies")
        ]
        waiting += reversed(further)


def replies_of(node: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
    """Return the replies to a turn.

    Raises:
        RowError: they are not a list of objects.
    """
    replies = node.get("replies") or []
    if not isinstance(replies, list):
        raise RowError(field, f"must be a list of replies, not {kind(replies)}")
    for index, reply in enumerate(replies):
        if not isinstance(reply, Mapping):
            raise RowError(f"{field}[{index}]", f"must be a reply with role and text, not {kind(reply)}")
    return replies


def as_message(node: Mapping[str, Any], field: str) -> ChatMessage:
    """Return a turn of a tree as a message.

    Raises:
        RowError: its text or its role is wrong.
    """
    return chat_message({"role": node.get("role"), "content": node.get("text")}, field)
