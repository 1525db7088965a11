"""Conversations: what a prompt and its completions are once they are read, and what several share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.messages import ChatMessage

LONG_ENOUGH = 5
"""Characters of a text that does not stand in another one by chance."""


@dataclass(frozen=True)
class Conversation:
    """The messages of a prompt, with what a chat template gets beside them."""

    messages: list[ChatMessage]
    tools: list[Any] = field(default_factory=list)
    """JSON Schemas of the tools that the assistant may call."""
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the row gives the chat template, such as `enable_thinking`."""
    opening: str = ""
    """How the assistant's answer begins; the completion continues it."""

    def plain(self) -> Prompt:
        """Return the messages alone where there is nothing beside them, and a single user's text alone."""
        if self.tools or self.template_arguments or self.opening:
            return self
        if len(self.messages) == 1 and self.messages[0].keys() == {"role", "content"}:
            only = self.messages[0]
            if only["role"] == "user":
                return str(only["content"])
        return self.messages


Prompt = str | list[ChatMessage] | Conversation
"""A user's text, messages that leave the turn to the assistant, or those with tools."""
Completion = str | list[ChatMessage]
"""The assistant's text, or messages: a call, reasoning, or several turns."""


def as_conversation(prompt: Prompt) -> Conversation:
    """Return any prompt as a conversation."""
    if isinstance(prompt, Conversation):
        return prompt
    return Conversation([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)


def as_messages(completion: Completion) -> list[ChatMessage]:
    """Return any completion as messages."""
    if isinstance(completion, str):
        return [{"role": "assistant", "content": completion}]
    return completion


def as_completion(messages: list[ChatMessage]) -> Completion:
    """Return messages as a completion: one that is the assistant's text and nothing else is that text."""
    if len(messages) == 1 and messages[0].keys() == {"role", "content"}:
        return str(messages[0]["content"])
    return messages


def texts_of(value: object) -> Iterator[str]:
    """Yield every text in a value, its messages' and lists' included, without the space around it."""
    if isinstance(value, str):
        if value.strip():
            yield value.strip()
    elif isinstance(value, Conversation):
        yield from texts_of(value.messages)
        yield from texts_of(value.opening)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in ("role", "from"):
                yield from texts_of(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_of(inner)


def says_nothing_new(value: object, known: object) -> bool:
    """Return whether each text in a value stands in another value already."""
    said = list(texts_of(known))
    return all(any(stands_in(words, other) for other in said) for words in texts_of(value))


def stands_in(words: str, other: str) -> bool:
    """Return whether a text stands in another one; one as short as "no" or "12" only as words of its own."""
    if words not in other or len(words) >= LONG_ENOUGH:
        return words in other
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", other) is not None


def repeats(value: object, known: object) -> bool:
    """Return whether each text in a value is one of another value, or too long to stand in one by chance."""
    said = list(texts_of(known))
    return all(
        words in said or (len(words) >= LONG_ENOUGH and any(words in other for other in said))
        for words in texts_of(value)
    )


def split_shared(
    answers: Sequence[list[ChatMessage]], fields: Sequence[str]
) -> tuple[list[ChatMessage], list[list[ChatMessage]]]:
    """Split conversations into the messages that all begin with, and what each goes on with.

    Args:
        answers: conversations, each ending with the assistant.
        fields: what the row calls them.

    Raises:
        RowError: one ends with somebody else's message, or they part in one.
    """
    for messages, name in zip(answers, fields, strict=True):
        if messages[-1]["role"] != "assistant":
            raise RowError(name, f"ends with a message of the {messages[-1]['role']}, not of the assistant")
    longest = min(map(len, answers)) - 1
    equal = takewhile(lambda index: all(a[index] == answers[0][index] for a in answers), range(longest))
    shared = len(list(equal))
    for messages in answers:
        if (role := messages[shared]["role"]) != "assistant":
            problem = f"part in message {shared}, one of the {role}: they must share their prompt"
            raise RowError(fields[-1], f"and {fields[0]} {problem}")
    return answers[0][:shared], [messages[shared:] for messages in answers]


def add_system(prompt: Prompt, words: str, field_name: str) -> Prompt:
    """Return a prompt with a system message before it; one that it has already is not repeated.

    Raises:
        RowError: it has another one.
    """
    conversation = as_conversation(prompt)
    first = conversation.messages[0] if conversation.messages else {}
    if first.get("role") in ("system", "developer"):
        if str(first["content"]).strip() == words.strip():
            return prompt
        problem = "differs from the system message that the prompt begins with; leave it out"
        raise RowError(field_name, f"{problem} with --columns {field_name}=")
    messages = [{"role": "system", "content": words}, *conversation.messages]
    return replace(conversation, messages=messages).plain()
