"""What a judge scores: the completions of one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mint_train.rows.conversations import Prompt, as_conversation
from mint_train.rows.prompts import is_dialogue, kind_of_prompt
from mint_train.rows.values import JSON_STARTS


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


@dataclass(frozen=True, slots=True)
class Judged:
    """The completions that a policy wrote for one prompt, with their scores: what rows are made of."""

    prompt: Mapping[str, Any]
    """The columns that give a row its prompt; they go into each row as they are."""
    completions: Sequence[str]
    scores: Sequence[float | None]
    """Higher is better; None for a completion that the judge left out."""
    tokens: Sequence[Sequence[int]]
    """The token ids of each completion, with the one that ended it."""
    logprobs: Sequence[Sequence[float]]
    """Of each token, under the policy that wrote it, nats; empty where the service gives none."""
    seed: int
    """A seed of the prompt's own, for rows that are made at random."""

    def usable(self) -> list[tuple[str, float]]:
        """Return the different completions that hold a text and have a score, in their order."""
        found: dict[str, float] = {}
        for text, score in zip(self.completions, self.scores, strict=True):
            if text.strip() and score is not None:
                found.setdefault(text, score)
        return list(found.items())


def prompt_columns(prompt: Prompt) -> dict[str, Any]:
    """Return the columns that a prompt is read back from, just as it is."""
    conversation = as_conversation(prompt)
    columns: dict[str, Any] = {"prompt": [dict(message) for message in conversation.messages]}
    if isinstance(prompt, str) and kind_of_prompt(prompt) == "text":
        columns["prompt"] = prompt
    if conversation.tools:
        columns["tools"] = conversation.tools
    if conversation.template_arguments:
        columns["chat_template_kwargs"] = dict(conversation.template_arguments)
    if conversation.opening:
        columns["initial_reason_steps"] = conversation.opening
    return columns


def text_column(text: str) -> str | list[dict[str, str]]:
    """Return a completion's text as a column from which it is read back: a message, if it looks like JSON."""
    plain = not text.lstrip().startswith(JSON_STARTS) and not is_dialogue(text)
    return text if plain else [{"role": "assistant", "content": text}]
