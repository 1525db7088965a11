"""Where the tokens of a completion stand in its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mint_train.errors import RowError


def text_offsets(text: str, tokens: Sequence[int], tokenizer: Any, field: str) -> list[tuple[int, int]]:
    """Return the characters of a text that each of its tokens covers, from its first to behind its last.

    Args:
        text: a completion.
        tokens: those of the completion; the one that ends it lies behind the text.
        tokenizer: what made them.
        field: what a message calls the completion.

    Raises:
        RowError: the tokenizer does not say where its tokens lie.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    for before in (" ", "") if backend is not None else ():  # MinT's recipe has a space before the text
        encoded = backend.encode(before + text, add_special_tokens=False)
        count = len(encoded.ids)
        if list(encoded.ids) == list(tokens[:count]) and len(tokens) - count <= 1:
            found = [(max(0, first - len(before)), last - len(before)) for first, last in encoded.offsets]
            return found + [(len(text), len(text))] * (len(tokens) - count)
    raise RowError(field, "cannot be aligned with its tokens: the tokenizer does not say where they lie")
