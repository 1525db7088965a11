"""What the recipe's form can render: text. Anything else in a row is refused, with the option that can."""

from __future__ import annotations

from mint_train.errors import RowError
from mint_train.rows.conversations import Completion, Conversation
from mint_train.rows.messages import ASSISTANT, ChatMessage

ADVICE = "the recipe's form renders text alone; --render template renders it"
PARTS = {
    "tool_calls": "calls a tool",
    "reasoning_content": "holds reasoning",
    "tool_call_id": "is a tool's result",
}


def text_messages(conversation: Conversation) -> list[ChatMessage]:
    """Return the messages of a prompt.

    Raises:
        RowError: it has tools, or a message of it is not text alone.
    """
    if conversation.tools:
        raise RowError("tools", f"defines tools; {ADVICE}")
    for index, message in enumerate(conversation.messages):
        if problem := more_than_text(message):
            raise RowError("prompt", f"message {index} {problem}; {ADVICE}")
    return conversation.messages


def more_than_text(message: ChatMessage) -> str:
    """Say what a message has beside its text, or nothing."""
    for part, problem in PARTS.items():
        if part in message:
            return problem
    return "is a tool's result" if message.get("role") == "tool" else ""


def completion_text(completion: Completion, name: str) -> str:
    """Return a completion's text.

    Raises:
        RowError: it is a call, reasoning, or several messages.
    """
    if isinstance(completion, str):
        return completion
    if len(completion) > 1:
        answers = sum(message["role"] == ASSISTANT for message in completion)
        held = "several answers of the assistant" if answers > 1 else f"{len(completion)} messages"
        raise RowError(name, f"holds {held}; {ADVICE}")
    if problem := more_than_text(completion[0]):
        raise RowError(name, f"{problem}; {ADVICE}")
    return str(completion[0]["content"])
