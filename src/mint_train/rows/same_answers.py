"""Whether two forms of a row's answers read the same answers, so that the row has one meaning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.conversations import as_messages, texts_of
from mint_train.rows.form import Answers, Form
from mint_train.rows.messages import ChatMessage
from mint_train.rows.prompts import dialogue, is_dialogue
from mint_train.rows.shared_beginnings import is_conversation
from mint_train.rows.values import from_json
from mint_train.rows.verdicts import Survey


def value_of(form: Form, row: Mapping[str, Any]) -> list[object]:
    """Return the values that a form reads, as the row has them."""
    return [from_json(row[field]) for field in form.needs]


def same_answers(answers: Answers, other: Form, row: Mapping[str, Any], survey: Survey) -> bool:
    """Return whether another form reads the same answers, with the same one as the best.

    It may read others beside them, or fewer; columns that grade nothing need only hold the same answers.
    """
    own = answers.completions
    found = Answers()
    with suppress(RowError):  # what the other form cannot read may hold the same all the same
        found = other.read(row, survey)
    if found.completions and own:
        # an answer that is rated as bad is the worst of a pair
        place = -1 if answers.value is False else 0
        if not are_alike(own[place], found.completions[place]) or contradict(answers.value, found.value):
            return False
        fewer, more = sorted((own, found.completions), key=len)
        if all(any(are_alike(one, two) for two in more) for one in fewer):
            return True
    if len(own) == 1:
        return False
    held = set(said_in(value_of(other, row)))
    return {last_text(one) for one in own} <= held or held <= set(texts_of(own))


def contradict(rated: object, other: object) -> bool:
    """Return whether two ratings differ; other values, such as grades, may be of any kind."""
    return isinstance(rated, bool) and isinstance(other, bool) and rated != other


def are_alike(one: str | list[ChatMessage], two: str | list[ChatMessage]) -> bool:
    """Return whether two answers are the same; a whole conversation is the answer to its last question."""
    if is_conversation(one) != is_conversation(two):
        one, two = (ending(either) if is_conversation(either) else either for either in (one, two))
    return [stripped(message) for message in as_messages(one)] == [
        stripped(message) for message in as_messages(two)
    ]


def ending(conversation: str | list[ChatMessage]) -> list[ChatMessage]:
    """Return the messages of a conversation after the last one of the user."""
    messages = as_messages(conversation)
    asked = [index for index, message in enumerate(messages) if message["role"] == "user"]
    return messages[asked[-1] + 1 :] if asked else messages


def stripped(message: ChatMessage) -> ChatMessage:
    """Return a message without the space around its text."""
    return {**message, "content": (message["content"] or "").strip()}


def last_text(answer: str | list[ChatMessage]) -> str:
    """Return what an answer ends with, without the space around it."""
    return str(stripped(as_messages(answer)[-1])["content"])


def said_in(values: Sequence[object]) -> Iterator[str]:
    """Yield every text in values; of a text that is a dialogue its turns."""
    for value in values:
        turns: object = value
        with suppress(RowError):  # whoever reads it says what is wrong
            turns = dialogue(value, "") if isinstance(value, str) and is_dialogue(value) else value
        yield from texts_of(turns)
