"""Chat messages: the vocabularies that they come in, made one, with nothing of them dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.row import kind
from mint_train.rows.tool_calls import calls_in_text, tool_call, tool_calls
from mint_train.rows.values import from_json, given, text, whole_characters

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
"""Roles of other vocabularies, in lower case, and what a chat template calls them."""
ASSISTANT = "assistant"
PLAIN_ROLES = ("user", ASSISTANT, "system")
CALL_ROLES = ("function_call", "tool_call")
"""Roles of ShareGPT and ms-swift for a turn of the assistant that is a call written as JSON text."""
ROLE_KEYS = ("role", "from", "speaker")
TEXT_KEYS = ("content", "value", "text")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")
READ_KEYS = frozenset(
    {*ROLE_KEYS, *TEXT_KEYS, *REASONING_KEYS, "tool_calls", "function_call", "tool_call_id", "name"}
)
MEDIA = frozenset({"image", "images", "video", "videos", "audio", "audios", "image_url", "input_audio"})
TRAINED_KEYS = frozenset({"weight", "train", "training", "trainable", "loss"})
"""Keys that say whether a message is trained; the assistant's are, and no others."""
MASK_KEYS = frozenset({"mask", "masked", "loss_mask", "loss_weight", "train_detail", "label"})
MEANINGFUL_KEYS = MEDIA | TRAINED_KEYS | MASK_KEYS | {"prefix", "channel", "recipient", "refusal"}
"""Keys of a message that change what is trained, and that nothing here reads."""

ChatMessage = dict[str, Any]
"""`role` and `content`, and perhaps `reasoning_content`, `tool_calls`, `tool_call_id`, `name`."""


def is_message(value: object) -> bool:
    """Return whether a value is an object with a role and a text or a call."""
    return (
        isinstance(value, Mapping)
        and any(isinstance(value.get(key), str) for key in ROLE_KEYS)
        and any(key in value for key in (*TEXT_KEYS, "tool_calls", "function_call"))
    )


def is_assistants(message: object) -> bool:
    """Return whether a message, as it stands in a row, is the assistant's."""
    if not isinstance(message, Mapping):
        return False
    role = next((message[key] for key in ROLE_KEYS if isinstance(message.get(key), str)), "")
    plain = role.strip().lower()
    return plain in CALL_ROLES or ROLES.get(plain) == ASSISTANT


def are_messages(value: object) -> bool:
    """Return whether a value is a list of messages, at least one."""
    return isinstance(value, list) and bool(value) and is_message(value[0])


def chat_message(value: object, field: str) -> ChatMessage:
    """Return a message with the role and the keys that chat templates know.

    Raises:
        RowError: it is not a message, its role is unknown, it is empty, or a key of it would be dropped.
    """
    if (plain := plain_message(value)) is not None:
        return plain
    if not isinstance(value, Mapping):
        raise RowError(field, f"must be a message with role and content, not {kind(value)}")
    role_key = next((key for key in ROLE_KEYS if value.get(key) is not None), None)
    if role_key is None:
        raise RowError(field, "is not a message: it has neither role and content nor from and value")
    text_key = next((key for key in TEXT_KEYS if key in value), "value" if role_key == "from" else "content")
    if value.keys() - READ_KEYS:
        refuse_unread(value, field)
    written = text(value[role_key], f"{field}.{role_key}").strip().lower()
    if written in CALL_ROLES:
        calls = calls_in_text(value.get(text_key), f"{field}.{text_key}")
        return {"role": "assistant", "content": None, "tool_calls": calls}
    if written not in ROLES:
        known = ", ".join(sorted({*ROLES, *CALL_ROLES}))
        raise RowError(f"{field}.{role_key}", f'"{value[role_key]}" is not a known role; those are {known}')
    message: ChatMessage = {"role": ROLES[written], "content": value.get(text_key)}
    if not isinstance(message["content"], str):
        message["content"] = content_text(message["content"], f"{field}.{text_key}")
    if len(value) > 2:
        add_parts(message, value, field)
    require_something(message, f"{field}.{text_key}")
    return message


def plain_message(value: object) -> ChatMessage | None:
    """Return a message that is a known role and a text and nothing else, as most are; None for others."""
    if type(value) is not dict or len(value) != 2:
        return None
    role, content = value.get("role"), value.get("content")
    if type(content) is not str or role not in PLAIN_ROLES or not content or content.isspace():
        return None
    try:
        content.encode()
    except UnicodeEncodeError:
        return None
    return {"role": role, "content": content}


def refuse_unread(value: Mapping[str, Any], field: str) -> None:
    """Refuse a message with a key that changes its meaning and is not read.

    Raises:
        RowError: naming the key.
    """
    for key in sorted(value.keys() & MEANINGFUL_KEYS):
        if given(value, key) and not (key in TRAINED_KEYS and value[key] == is_assistants(value)):
            problem = (
                "holds what only a model for more than text reads"
                if key in MEDIA
                else "is not read, and would change what is trained; take it out of the data"
            )
            raise RowError(f"{field}.{key}", problem)


def content_text(value: object, field: str) -> str | None:
    """Return the text of a message's content: text, null, or a list of text parts.

    Raises:
        RowError: it is something else, such as a part that is an image.
    """
    if value is None:
        return None
    if not isinstance(value, list):
        raise RowError(field, f"must be text or a list of text parts, not {kind(value)}")
    texts: list[str] = []
    for index, part in enumerate(value):
        if isinstance(part, str):
            texts.append(part)
            continue
        kind_of_part = part.get("type", "text") if isinstance(part, Mapping) else kind(part)
        found = part.get("text") if isinstance(part, Mapping) else None
        if kind_of_part not in ("text", "input_text", "output_text") or not isinstance(found, str):
            raise RowError(f"{field}[{index}]", f"is a part of type {kind_of_part}; only text can be trained")
        texts.append(found)
    return "".join(texts)


def add_parts(message: ChatMessage, value: Mapping[str, Any], field: str) -> None:
    """Add what a message has beside its role and text: reasoning, calls, the id of a call, a name."""
    for key in REASONING_KEYS:
        if given(value, key):
            message["reasoning_content"] = text(value[key], f"{field}.{key}")
    calls: list[dict[str, Any]] = []
    if given(value, "tool_calls") and from_json(value["tool_calls"]) not in ([], {}):
        calls = tool_calls(value["tool_calls"], f"{field}.tool_calls")
    if given(value, "function_call"):
        calls.append(tool_call(value["function_call"], f"{field}.function_call"))
    if calls:
        if message["role"] != "assistant":
            raise RowError(
                f"{field}.tool_calls", f"is in a message of the {message['role']}, which calls no tool"
            )
        message["tool_calls"] = calls
    for key in ("tool_call_id", "name"):
        if given(value, key):
            message[key] = text(value[key], f"{field}.{key}")


def require_something(message: ChatMessage, field: str) -> None:
    """Refuse a message without text, unless it is a call, reasoning, a system prompt or a result.

    Raises:
        RowError: it is empty, or its text holds half a character.
    """
    content, role = message["content"], message["role"]
    if content is not None:
        whole_characters(content, field)
    if content and content.strip():
        return
    if role == "assistant" and ("tool_calls" in message or "reasoning_content" in message):
        return
    if content is not None and role in ("system", "developer", "tool"):
        return
    raise RowError(
        field, "must be text, not null" if content is None else f"is empty, in a message of the {role}"
    )


def chat_messages(value: object, field: str) -> list[ChatMessage]:
    """Return a list of messages, at least one.

    Raises:
        RowError: naming the message that is wrong.
    """
    if not isinstance(value, list):
        raise RowError(field, f"must be a list of messages, not {kind(value)}")
    if not value:
        raise RowError(field, "is an empty list of messages")
    messages = [chat_message(message, f"{field}[{index}]") for index, message in enumerate(value)]
    check_results(messages, field)
    return messages


def check_results(messages: list[ChatMessage], field: str) -> None:
    """Refuse a tool's result that no call asked for: one behind the user's message, or with another id.

    Raises:
        RowError: naming the message.
    """
    known: set[object] = set()
    for index, message in enumerate(messages):
        before = messages[index - 1]["role"] if index else ASSISTANT  # a completion may begin with a result
        if message["role"] == "tool" and before not in (ASSISTANT, "tool"):
            problem = f"is a tool's result, and follows a message of the {before}: no call asked for it"
            raise RowError(f"{field}[{index}]", problem)
        known.update(call["id"] for call in message.get("tool_calls", ()) if "id" in call)
        answered = message.get("tool_call_id")
        if known and answered is not None and answered not in known:
            raise RowError(f"{field}[{index}].tool_call_id", f'"{answered}" is not the id of an earlier call')
