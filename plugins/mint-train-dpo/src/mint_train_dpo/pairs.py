"""The row of a preference loss: a prompt with a chosen and a rejected completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mint_train.data.messages import ChatMessage, chat_messages, completion, prompt, require
from mint_train.errors import RowError


@dataclass(frozen=True)
class PreferencePair:
    """One comparison: for this prompt, `chosen` was preferred to `rejected`."""

    prompt: str | list[ChatMessage]
    chosen: str
    rejected: str


def parse_pair(row: Mapping[str, Any]) -> PreferencePair:
    """Read a pair from a row in one of these forms.

    - `prompt`, `chosen`, `rejected`, each as text or as chat messages;
    - `conversations`, `chosen`, `rejected` (ShareGPT);
    - `chosen`, `rejected` as whole conversations that share all messages but the last.

    Raises:
        RowError: naming the field that is missing or wrong.
    """
    chosen, rejected = require(row, "chosen"), require(row, "rejected")
    if "conversations" in row:
        pair = PreferencePair(
            prompt(row["conversations"], "conversations"),
            completion(chosen, "chosen"),
            completion(rejected, "rejected"),
        )
    elif is_conversation(chosen) and is_conversation(rejected):
        pair = split_conversations(chosen, rejected)
    else:
        pair = PreferencePair(
            prompt(require(row, "prompt"), "prompt"),
            completion(chosen, "chosen"),
            completion(rejected, "rejected"),
        )
    if pair.chosen == pair.rejected:
        raise RowError("rejected", "is equal to chosen, so there is nothing to prefer; remove the row")
    return pair


def is_conversation(value: object) -> bool:
    """Tell a whole conversation from a single answer."""
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 1


def split_conversations(chosen: object, rejected: object) -> PreferencePair:
    """Take the shared messages of two conversations as the prompt.

    Raises:
        RowError: they differ before their last messages.
    """
    better, worse = chat_messages(chosen, "chosen"), chat_messages(rejected, "rejected")
    if better[:-1] != worse[:-1]:
        raise RowError("rejected", "and chosen differ before their last message: a pair shares its prompt")
    return PreferencePair(
        prompt(better[:-1], "chosen"),
        completion(better[-1:], "chosen"),
        completion(worse[-1:], "rejected"),
    )
