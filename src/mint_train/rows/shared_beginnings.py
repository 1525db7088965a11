"""Splits what answers begin with off them: it is their prompt, or a part of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.conversations import (
    Completion,
    Conversation,
    Prompt,
    as_completion,
    as_conversation,
    as_messages,
    split_shared,
)
from mint_train.rows.form import Answers, Form
from mint_train.rows.messages import ChatMessage
from mint_train.rows.prompts import (
    PROMPTS,
    SYSTEM_FIELDS,
    TOOL_FIELDS,
    TURN_LISTS,
    kind_of_prompt,
    with_beside,
)
from mint_train.rows.suggestions import begins_with_assistant
from mint_train.rows.values import from_json, text

BESIDE_CONVERSATIONS = frozenset({*SYSTEM_FIELDS, *TOOL_FIELDS, "chat_template_kwargs"})
"""What may stand beside whole conversations, which hold the rest of their prompt themselves."""


def is_conversation(answer: str | list[ChatMessage]) -> bool:
    """Return whether an answer is a whole conversation, which begins with the system or the user."""
    return isinstance(answer, list) and answer[0]["role"] in ("system", "developer", "user")


def as_answer(answer: str | list[ChatMessage], field: str) -> Completion:
    """Return an answer that begins with the assistant, or with the result of the prompt's call.

    Raises:
        RowError: it begins with somebody else, or ends so.
    """
    if isinstance(answer, str):
        return answer
    for message in (answer[0], answer[-1]):
        if message["role"] != "assistant" and not (message is answer[0] and message["role"] == "tool"):
            raise RowError(field, f"is a message of the {message['role']}, not of the assistant")
    return as_completion(answer)


def share_beginning(
    prompt: Prompt, completions: Sequence[Completion], fields: Sequence[str]
) -> tuple[Prompt, list[Completion]]:
    """Move the messages that all completions begin with into their prompt."""
    conversation = as_conversation(prompt)
    whole = [conversation.messages + as_messages(completion) for completion in completions]
    shared, rest = split_shared(whole, fields)
    return replace(conversation, messages=shared).plain(), [as_completion(messages) for messages in rest]


def split_conversations(
    form: Form, answers: Answers, row: Mapping[str, Any], read: set[str]
) -> tuple[str, Prompt, list[Completion]]:
    """Split whole conversations into the prompt that they share and what each ends with.

    Raises:
        RowError: not all are conversations, or they part before the assistant's turn.
    """
    conversations: list[list[ChatMessage]] = []
    for answer, field in zip(answers.completions, answers.fields, strict=True):
        if isinstance(answer, str) or not (is_conversation(answer) or answers.every_turn):
            raise RowError(field, f"is not a whole conversation, though {answers.fields[0]} is one")
        conversations.append(answer)
    shared, rest = split_shared(conversations, answers.fields)
    if answers.every_turn:
        shared, rest = split_first_answer(conversations[0])
    if not shared:
        raise begins_with_assistant(row, PROMPTS, answers.fields[0], read)
    written = row.get(answers.fields[0])
    is_hh = isinstance(written, str) and kind_of_prompt(written) == "dialogue"
    kind = "Anthropic HH dialogues" if is_hh else "chat messages"
    if answers.every_turn:
        name = f"{kind} with all their answers"
    elif len(rest) > 1:
        name = f"{kind}, {form.name} sharing their prompt"
    else:
        name = f"{kind}, {form.name} of the last one"
    beside = {field: row[field] for field in BESIDE_CONVERSATIONS & row.keys()}
    prompt = with_beside(beside, Conversation(shared).plain(), read)
    # a single user's text stays a list here: the row has it as a message
    prompt = shared if isinstance(prompt, str) else prompt
    return name, prompt, [as_completion(messages) for messages in rest]


def split_first_answer(messages: list[ChatMessage]) -> tuple[list[ChatMessage], list[list[ChatMessage]]]:
    """Split a conversation that ends with an answer before the assistant's first one to the user."""
    roles = [message["role"] for message in messages]
    asked = roles.index("user") if "user" in roles else 0
    first = roles.index("assistant", asked)
    return messages[:first], [messages[first:]]


def interleaved(asked: object, answers: Answers) -> tuple[Prompt, list[Completion]]:
    """Read the user's turns and each side's turns, which stand in lists of texts, as conversations.

    Raises:
        RowError: an answer is another kind of list, or of another length; or there are several turns and no
            answers.
    """
    if not answers.completions:
        return TURN_LISTS.read({"prompt": asked}), []
    questions = from_json(asked)
    conversations: list[list[ChatMessage]] = []
    for answer, field in zip(answers.completions, answers.fields, strict=True):
        turns = from_json(answer)
        if not isinstance(turns, list) or len(turns) != len(questions):
            raise RowError(field, f"must be a list of {len(questions)} texts, as the prompt is one")
        pairs = zip(questions, turns, strict=True)
        conversations.append(
            [
                {"role": role, "content": text(words, f"{field}[{index}]")}
                for index, pair in enumerate(pairs)
                for role, words in zip(("user", "assistant"), pair, strict=True)
            ]
        )
    shared, rest = split_shared(conversations, answers.fields)
    return Conversation(shared).plain(), [as_completion(messages) for messages in rest]
