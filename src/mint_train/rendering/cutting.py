"""Where a text can be cut before it is encoded, so that what many texts share is encoded once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from operator import add
from typing import Any

INDEPENDENT = {"Sequence", "Split", "ByteLevel", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit"}
"""Pre-tokenizers that treat a part of a text alike wherever it stands; Metaspace need not."""
SILENT = {"Sequence", "ByteLevel", "TemplateProcessing"}
"""Post-processors that add no tokens where none are asked for."""


class Cutter:
    """Cuts texts before special tokens: what stands on either side does not meet.

    The `tokenizers` library takes added tokens out of a text first, and normalises and encodes what is left
    between them part by part. So the tokens of the parts are those of the whole, unless a token takes the
    blanks before it along, or a part is treated by its position.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Take a tokenizer of the `tokenizers` library."""
        tokens = tokenizer.get_added_tokens_decoder().values()
        # those that the library looks for before it normalises
        added = [token for token in tokens if not token.normalized]
        fits = (
            kinds(described(tokenizer.pre_tokenizer)) <= INDEPENDENT
            and kinds(described(tokenizer.post_processor)) <= SILENT
            and not any(token.single_word for token in tokens)
        )
        self._cut_before = {token.content for token in added if fits and token.special and not token.lstrip}
        names = sorted((token.content for token in added), key=len, reverse=True)
        self._added = alternatives(names)
        self._apart = None if may_overlap(names, self._cut_before) else alternatives(self._cut_before)

    def parts(self, text: str) -> list[str]:
        """Return the parts of a text, in their order; their tokens are those of the text."""
        if self._apart is not None:
            first, *rest = self._apart.split(text)
            cut = list(map(add, rest[::2], rest[1::2]))
            return [first, *cut] if first or not cut else cut
        parts, begin = [], 0
        for found in self._added.finditer(text):
            if found[0] in self._cut_before and found.start() > begin:
                parts.append(text[begin : found.start()])
                begin = found.start()
        return [*parts, text[begin:]]


def alternatives(names: Iterable[str]) -> re.Pattern[str]:
    """Return what finds the first of some names that fits."""
    return re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")


def may_overlap(names: Sequence[str], cut_before: Set[str]) -> bool:
    """Return whether a token to cut before may begin within another one, or be the beginning of another."""
    begin = {name[0] for name in cut_before}
    others = (name for name in names if name not in cut_before)
    return any(begin.intersection(name[1:]) for name in names) or any(
        other.startswith(tuple(cut_before)) for other in others
    )


def described(part: Any) -> Any:
    """Return a part of a tokenizer as JSON has it, without the vocabulary that the whole would bring."""
    return None if part is None else json.loads(part.__getstate__())


def kinds(part: Mapping[str, Any] | None) -> set[str]:
    """Return the types of a part of a tokenizer, and of those that it is a sequence of."""
    if part is None:
        return set()
    inner = [*part.get("pretokenizers", ()), *part.get("processors", ())]
    return {str(part["type"])}.union(*map(kinds, inner))
