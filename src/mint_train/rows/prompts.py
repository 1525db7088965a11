"""The forms that prompts come in: text, chat messages, ShareGPT, Anthropic HH, Alpaca. For plugins' forms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.forms import Form
from mint_train.rows.messages import ChatMessage, chat_messages, prompt, text
from mint_train.rows.row import kind

HH_ROLES = {"Human": "user", "Assistant": "assistant"}
HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")

Prompt = str | list[ChatMessage]


def is_dialogue(value: object) -> bool:
    """Tell a text of Anthropic's HH form: it begins with a turn of the human."""
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def dialogue(value: str, field: str) -> list[ChatMessage]:
    r"""Return the turns of `\n\nHuman: ...\n\nAssistant: ...` as messages; an open last turn is left out.

    Raises:
        RowError: naming the turn that is empty.
    """
    parts = HH_TURN.split(text(value, field).strip())[1:]
    if len(parts) > 2 and not parts[-1].strip():
        parts = parts[:-2]
    return [
        {"role": HH_ROLES[name], "content": text(words.strip(), f"{field}, turn {place}")}
        for place, (name, words) in enumerate(zip(parts[::2], parts[1::2], strict=True), start=1)
    ]


def split_shared(
    one: list[ChatMessage], other: list[ChatMessage], fields: tuple[str, str]
) -> tuple[list[ChatMessage], str, str]:
    """Split two conversations into the messages that they share, and the last message of each.

    Args:
        one: a conversation whose last message is the assistant's.
        other: another one that differs in its last message alone.
        fields: what the row calls them.

    Raises:
        RowError: they differ before their last messages, or end in a message of somebody else.
    """
    if one[:-1] != other[:-1]:
        problem = f"and {fields[0]} differ before their last message: they must share their prompt"
        raise RowError(fields[1], problem)
    for messages, field in zip((one, other), fields, strict=True):
        if messages[-1]["role"] != "assistant":
            raise RowError(field, f"ends with a message of the {messages[-1]['role']}, not of the assistant")
    return list(as_prompt(one[:-1], fields[0])), one[-1]["content"], other[-1]["content"]


def as_prompt(messages: list[ChatMessage], field: str) -> list[ChatMessage]:
    """Return messages that leave the turn to the assistant.

    Raises:
        RowError: there are none, or the last one is the assistant's own.
    """
    found = prompt(messages, field)
    return found if isinstance(found, list) else []


def with_system(row: Mapping[str, Any], found: Prompt) -> Prompt:
    """Put a row's `system` text, where it has one, before its prompt.

    Raises:
        RowError: it is no text.
    """
    if row.get("system") in (None, ""):
        return found
    messages = [{"role": "user", "content": found}] if isinstance(found, str) else found
    return [{"role": "system", "content": text(row["system"], "system")}, *messages]


def read_prompt(row: Mapping[str, Any]) -> Prompt:
    """Read `prompt`: text or messages."""
    return with_system(row, prompt(row["prompt"], "prompt"))


def read_dialogue(row: Mapping[str, Any]) -> Prompt:
    """Read `prompt` in Anthropic's HH form."""
    return with_system(row, as_prompt(dialogue(row["prompt"], "prompt"), "prompt"))


def read_conversations(row: Mapping[str, Any]) -> Prompt:
    """Read `conversations`: messages, in ShareGPT's form or with roles."""
    return with_system(row, as_prompt(chat_messages(row["conversations"], "conversations"), "conversations"))


def read_instruction(row: Mapping[str, Any]) -> Prompt:
    r"""Read `instruction`, with its `input` on the next line, and the `history` of turns before it.

    As LLaMA-Factory joins them.
    """
    question = text(row["instruction"], "instruction")
    if row.get("input") not in (None, ""):
        question = f"{question}\n{text(row['input'], 'input')}"
    earlier = [
        {"role": role, "content": text(words, f"history[{place}]")}
        for place, turn in enumerate(history(row))
        for role, words in zip(("user", "assistant"), turn, strict=True)
    ]
    return with_system(row, [*earlier, {"role": "user", "content": question}] if earlier else question)


def history(row: Mapping[str, Any]) -> list[list[Any]]:
    """Return Alpaca's `history`: a list of pairs of what the user and the assistant said.

    Raises:
        RowError: it is something else.
    """
    turns = row.get("history") or []
    if not isinstance(turns, list):
        raise RowError("history", f"must be a list of turns, not {kind(turns)}")
    for place, turn in enumerate(turns):
        if not isinstance(turn, list) or len(turn) != 2:
            raise RowError(f"history[{place}]", "must be two texts: the user's and the assistant's")
    return turns


PROMPTS = (
    Form(
        "text prompts",
        ("prompt",),
        read_prompt,
        lambda row: not isinstance(row["prompt"], list) and not is_dialogue(row["prompt"]),
    ),
    Form("chat messages", ("prompt",), read_prompt, lambda row: isinstance(row["prompt"], list)),
    Form("Anthropic HH dialogues", ("prompt",), read_dialogue, lambda row: is_dialogue(row["prompt"])),
    Form("ShareGPT conversations", ("conversations",), read_conversations),
    Form("Alpaca instructions", ("instruction",), read_instruction),
)
"""Every form of a prompt: text, or messages that leave the turn to the assistant."""
