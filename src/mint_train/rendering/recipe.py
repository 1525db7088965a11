"""The recipe form: the prompt by the chat template, a space, the text, the end-of-sequence token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mint_train.rendering.refusals import template_refusals

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mint_train.rows.messages import ChatMessage


def recipe_prompt_tokens(
    messages: list[ChatMessage], tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]
) -> list[int]:
    """Tokenise a conversation up to where the assistant's answer begins.

    Uses the tokenizer's chat template with its generation prompt where it has one, else the plain form
    `User: ...` and `Assistant:` a line each.

    Args:
        messages: chat messages with `role` and `content`.
        tokenizer: the model's tokenizer.
        arguments: what the chat template gets beside the messages.

    Raises:
        RowError: the chat template refuses the messages.
    """
    if tokenizer.chat_template or "chat_template" in arguments:
        with template_refusals():
            tokens = tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=False, **arguments
            )
        return list(tokens)
    lines = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return list(tokenizer.encode("\n".join([*lines, "Assistant:"]), add_special_tokens=True))


def build_completion_tokens(completion: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokenise a completion: a leading space, no special tokens, the end-of-sequence token behind."""
    tokens = tokenizer.encode(f" {completion}", add_special_tokens=False)
    return [*tokens, tokenizer.eos_token_id]
