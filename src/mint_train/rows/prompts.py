"""The forms that prompts come in, and what stands beside them: a system prompt, tools, earlier turns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.conversations import Prompt, add_system, as_conversation, repeats, says_nothing_new
from mint_train.rows.form import Form, suits_any
from mint_train.rows.messages import ChatMessage, are_messages, chat_messages
from mint_train.rows.row import kind
from mint_train.rows.tool_calls import tool_list
from mint_train.rows.values import from_json, given, text

HH_ROLES = {"Human": "user", "Assistant": "assistant"}
HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")

SYSTEM_FIELDS = ("system", "system_prompt", "system_message")
TOOL_FIELDS = ("tools", "functions", "available_tools")
EARLIER_FIELDS = ("history", "context")
BESIDE = (
    *SYSTEM_FIELDS,
    *TOOL_FIELDS,
    *EARLIER_FIELDS,
    "input",
    "initial_reason_steps",
    "chat_template_kwargs",
)
"""Columns that belong to a prompt, in whatever form it is."""


def is_dialogue(value: object) -> bool:
    """Return whether a value is a text of Anthropic's HH form, which begins with a turn of the human."""
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def dialogue(value: str, field: str) -> list[ChatMessage]:
    r"""Return the turns of `\n\nHuman: ...\n\nAssistant: ...` as messages; an open last turn has no text.

    Raises:
        RowError: naming the turn that is empty, where it is not the last.
    """
    parts = HH_TURN.split(text(value, field).replace("\r\n", "\n").strip())[1:]
    turns = list(zip(parts[::2], parts[1::2], strict=True))
    messages: list[ChatMessage] = []
    for index, (name, words) in enumerate(turns, start=1):
        if index < len(turns):
            text(words, f"{field}, turn {index}")
        messages.append({"role": HH_ROLES[name], "content": words.strip()})
    return messages


def closed(messages: list[ChatMessage], field: str) -> list[ChatMessage]:
    """Return the turns of a whole dialogue.

    Raises:
        RowError: its last turn is empty.
    """
    if not messages[-1]["content"]:
        raise RowError(field, f"ends with an empty answer of the {messages[-1]['role']}")
    return messages


def opened(messages: list[ChatMessage]) -> list[ChatMessage]:
    """Return the turns of a dialogue that is a prompt, without the empty turn that it ends with."""
    return messages[:-1] if len(messages) > 1 and not messages[-1]["content"] else messages


def as_prompt(messages: list[ChatMessage], field: str) -> list[ChatMessage]:
    """Return messages that leave the turn to the assistant.

    Raises:
        RowError: there are none, the first is a tool's result, or the last one is the assistant's own.
    """
    if not messages:
        raise RowError(field, "is an empty list of messages")
    if messages[0]["role"] == "tool":
        raise RowError(field, "begins with a tool's result, which no call asked for")
    last = messages[-1]
    if last["role"] == "assistant":
        raise RowError(field, "ends with the assistant's own message; a prompt must leave the turn to it")
    return messages


def turns_of(value: list[str], field: str) -> list[ChatMessage]:
    """Return the user's turns alone, as lmsys writes a prompt: a list of texts.

    Raises:
        RowError: there are several, whose answers stand in other columns.
    """
    if len(value) != 1:
        raise RowError(
            field,
            f"is a list of {len(value)} texts, of which only one could be the user's turn; write messages",
        )
    return [{"role": "user", "content": text(value[0], f"{field}[0]")}]


def kind_of_prompt(value: object) -> str:
    """Name the form of a prompt's value.

    "text", "texts" (a list of them), "dialogue" (Anthropic's HH form), "messages", "tree" (a turn with its
    replies), "input" (an object with messages, as OpenAI has it), or "other".
    """
    if isinstance(value, str):
        if (found := from_json(value)) is not value:
            return kind_of_prompt(found) if not isinstance(found, str) else "text"
        return "dialogue" if is_dialogue(value) else "text"
    if isinstance(value, Mapping):
        if "text" in value and "role" in value:
            return "tree"
        return "input" if "messages" in value else "other"
    if isinstance(value, list):
        return "texts" if value and all(isinstance(item, str) for item in value) else "messages"
    return "other"


def read_value(value: object, field: str) -> Prompt:
    """Read a prompt in any form of its value.

    Raises:
        RowError: it is in none, or does not leave the turn to the assistant.
    """
    form = kind_of_prompt(value)
    found: Any = from_json(value, field) if form in ("texts", "messages", "tree") else value
    if form == "dialogue" and isinstance(value, str):
        return as_prompt(opened(dialogue(value, field)), field)
    if form == "texts":
        return as_conversation(turns_of(found, field)).plain()
    if form == "messages":
        return as_prompt(chat_messages(found, field), field)
    if form == "tree":
        return text(found["text"], f"{field}.text")
    return text(value, field)


def one_of(field: str, *forms: str) -> Any:
    """Return what recognises a field by the form of its value."""
    return lambda row: kind_of_prompt(row[field]) in forms


def prompt_field(name: str, field: str, *forms: str) -> Form:
    """Make the form of a prompt in one field."""
    return Form(name, (field,), lambda row: read_value(row[field], field), one_of(field, *forms))


def read_messages_of_input(row: Mapping[str, Any]) -> Prompt:
    """Read OpenAI's `input`: an object with messages, and perhaps tools."""
    value = from_json(row["input"], "input")
    prompt: Prompt = as_prompt(chat_messages(value.get("messages"), "input.messages"), "input.messages")
    if given(value, "tools"):
        prompt = replace(as_conversation(prompt), tools=tool_list(value["tools"], "input.tools"))
    return prompt


def messages_field(name: str, field: str, suits: Callable[[Mapping[str, Any]], bool] = suits_any) -> Form:
    """Make the form of a prompt whose messages stand in one field."""
    return Form(
        name,
        (field,),
        lambda row: as_prompt(chat_messages(from_json(row[field], field), field), field),
        suits,
    )


def has_none_of(row: Mapping[str, Any], *fields: str) -> bool:
    """Return whether a row has nothing in any of some fields."""
    return not any(given(row, field) for field in fields)


PROMPT_FIELDS = ("prompt", "instruction", "question", "query", "messages", "conversations", "problem")
"""Fields that hold a prompt by their name; a context or an input beside one belongs to it."""
TURN_LISTS = prompt_field("lists of the user's turns", "prompt", "texts")
"""The form whose answers may be lists of turns too, which are then read together with the prompt."""
REPLY_TREES = prompt_field("trees of replies", "prompt", "tree")
"""The form whose field holds the answers too."""
PROMPTS = (
    prompt_field("text prompts", "prompt", "text", "other"),
    prompt_field("chat messages", "prompt", "messages"),
    prompt_field("Anthropic HH dialogues", "prompt", "dialogue"),
    TURN_LISTS,
    REPLY_TREES,
    messages_field("ShareGPT conversations", "conversations"),
    prompt_field("Alpaca instructions", "instruction", "text", "other", "dialogue"),
    prompt_field("questions", "question", "text", "dialogue", "messages"),
    prompt_field("questions", "query", "text", "dialogue", "messages"),
    prompt_field("questions", "problem", "text"),
    messages_field("messages", "messages"),
    Form("OpenAI inputs", ("input",), read_messages_of_input, one_of("input", "input")),
    messages_field(
        "messages of a context",
        "context",
        lambda row: are_messages(from_json(row["context"])) and has_none_of(row, *PROMPT_FIELDS, "input"),
    ),
    Form(
        "text inputs",
        ("input",),
        lambda row: read_value(row["input"], "input"),
        lambda row: (
            has_none_of(row, *PROMPT_FIELDS)
            and kind_of_prompt(row["input"]) in ("text", "dialogue", "messages")
        ),
    ),
    Form(
        "text histories",
        ("history",),
        lambda row: read_value(row["history"], "history"),
        lambda row: isinstance(row["history"], str) and has_none_of(row, *PROMPT_FIELDS, "input"),
    ),
)
"""Every form of a prompt: text, or messages that leave the turn to the assistant."""


def with_beside(row: Mapping[str, Any], prompt: Prompt, read: set[str]) -> Prompt:
    """Put what stands beside a prompt into it.

    Args:
        row: the row, its columns renamed.
        prompt: the prompt as one column has it.
        read: the columns that were read; those that are read here are added.

    Raises:
        RowError: a column has another form, or fits nowhere.
    """
    beside = [name for name in BESIDE if name not in read and given(row, name)]
    if not beside:
        return prompt
    for name in beside:
        if name in EARLIER_FIELDS:
            prompt = with_earlier(row[name], name, prompt)
        elif name == "input":
            prompt = with_input(row["input"], prompt, is_alpaca=not has_none_of(row, "instruction"))
        elif name in TOOL_FIELDS:
            if tools := tool_list(row[name], name):
                prompt = replace(as_conversation(prompt), tools=tools)
        elif name == "chat_template_kwargs":
            prompt = replace(as_conversation(prompt), template_arguments=template_arguments(row[name], name))
        elif name == "initial_reason_steps":
            prompt = replace(as_conversation(prompt), opening=text(row[name], name))
    # the system prompt goes before the earlier turns
    for name in beside:
        if name in SYSTEM_FIELDS:
            prompt = add_system(prompt, text(row[name], name), name)
    read.update(beside)
    return prompt


def template_arguments(value: object, field: str) -> Mapping[str, Any]:
    """Return what a row gives its chat template.

    Raises:
        RowError: it is not an object.
    """
    found = from_json(value, field)
    if not isinstance(found, Mapping):
        raise RowError(field, f"must be an object, not {kind(found)}")
    return {name: inner for name, inner in found.items() if inner is not None}


def with_input(value: object, prompt: Prompt, *, is_alpaca: bool) -> Prompt:
    """Put an `input` on the line after the question that it belongs to, as LLaMA-Factory does.

    Args:
        value: the input.
        prompt: the question, which may have the input in it already.
        is_alpaca: whether it is an Alpaca instruction, which its input follows even where it mentions it.

    Raises:
        RowError: it is not text, or the prompt is not one question.
    """
    if not is_alpaca and says_nothing_new(value, prompt):
        return prompt
    words = text(value, "input")
    conversation = as_conversation(prompt)
    *earlier, last = conversation.messages
    if is_alpaca and re.search(rf"(?<!\w){re.escape(words.strip())}$", str(last["content"])):
        return prompt
    if last["role"] != "user":
        raise RowError(
            "input",
            "stands beside a prompt that does not end with the user; leave it out with --columns input=",
        )
    joined = {**last, "content": f"{last['content']}\n{words}"}
    return replace(conversation, messages=[*earlier, joined]).plain()


def with_earlier(value: object, field: str, prompt: Prompt) -> Prompt:
    """Put earlier turns before a prompt: messages, or pairs of what the user and the assistant said.

    Raises:
        RowError: it is something else, such as a text that could belong anywhere.
    """
    found = from_json(value, field)
    if repeats(found, prompt):
        return prompt
    if isinstance(found, str):
        raise RowError(
            field,
            f"is a text beside a prompt; say what it is with --columns system={field} (a system prompt) or "
            f"--columns input={field} (the end of the question), or leave it out with --columns {field}=",
        )
    if are_messages(found):
        earlier = chat_messages(found, field)
    else:
        earlier = [
            {"role": role, "content": text(words, f"{field}[{index}]")}
            for index, turn in enumerate(turn_list(found, field))
            for role, words in zip(("user", "assistant"), turn, strict=True)
        ]
    conversation = as_conversation(prompt)
    first, rest = conversation.messages[:1], conversation.messages[1:]
    if first and first[0]["role"] == "system":
        messages = [*first, *earlier, *rest]
    else:
        messages = [*earlier, *first, *rest]
    return replace(conversation, messages=messages).plain()


def turn_list(value: object, field: str) -> list[list[Any]]:
    """Return Alpaca's `history`: a list of pairs of what the user and the assistant said.

    Raises:
        RowError: it is something else.
    """
    if not isinstance(value, list):
        raise RowError(field, f"must be a list of turns, not {kind(value)}")
    for index, turn in enumerate(value):
        if not isinstance(turn, list) or len(turn) != 2:
            raise RowError(f"{field}[{index}]", "must be two texts: the user's and the assistant's")
    return value
