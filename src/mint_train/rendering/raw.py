"""The raw form: prompts and completions that are rendered already, taken as they stand."""

from __future__ import annotations

from typing import Any

from mint_train.errors import RowError
from mint_train.rendering.special_tokens import special_ids
from mint_train.rows.conversations import Completion, Conversation, Prompt


def raw_prompt_tokens(prompt: Prompt, tokenizer: Any) -> list[int]:
    """Tokenise a text as it stands, behind the token that begins a sequence where the tokenizer adds one.

    Raises:
        RowError: the row has messages, or something beside its text.
    """
    if not isinstance(prompt, str):
        beside = "tools or a system prompt" if isinstance(prompt, Conversation) else "messages"
        raise RowError(
            "prompt", f"has {beside}, and --render raw takes texts alone; --render template renders it"
        )
    tokens = list(tokenizer.encode(prompt, add_special_tokens=False))
    begins = beginning(tokenizer)
    return tokens if tokens[: len(begins)] == begins else [*begins, *tokens]


def raw_completion_tokens(completion: Completion, tokenizer: Any, field: str) -> list[int]:
    """Tokenise a text as it stands, with the end-of-sequence token where it ends with no special token.

    Raises:
        RowError: the row has messages.
    """
    if not isinstance(completion, str):
        raise RowError(
            field, "has messages, and --render raw takes texts alone; --render template renders it"
        )
    tokens = list(tokenizer.encode(completion, add_special_tokens=False))
    return tokens if ends_itself(tokens, tokenizer) else [*tokens, tokenizer.eos_token_id]


def ends_itself(tokens: list[int], tokenizer: Any) -> bool:
    """Return whether tokens end with a special token, or with one and white space behind it."""
    special = special_ids(tokenizer)
    for token in reversed(tokens):
        if token in special:
            return True
        if str(tokenizer.decode([token])).strip():
            return False
    return False


def beginning(tokenizer: Any) -> list[int]:
    """Return the tokens that a tokenizer puts before a text: those that end a sequence are not among them."""
    around = [int(token) for token in tokenizer.encode("", add_special_tokens=True)]
    return [token for token in around if token != tokenizer.eos_token_id]
