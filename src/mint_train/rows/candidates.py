"""What a judge scores: the completions of one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mint_train.rows.conversations import Prompt, as_conversation


@dataclass(frozen=True, slots=True)
class Candidates:
    """The completions of one prompt, and the row that the prompt came from."""

    prompt: Prompt
    """A user's text, messages, or a conversation with tools."""
    completions: Sequence[str]
    """The assistant's texts; one may be empty, and two may be equal."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """All columns of the prompt's row, such as the answer that a verifier compares with."""

    @property
    def question(self) -> str:
        """The prompt as a reader sees it: a single user's text alone, messages with their roles."""
        messages = as_conversation(self.prompt).messages
        if len(messages) == 1 and messages[0]["role"] == "user":
            return str(messages[0]["content"])
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
