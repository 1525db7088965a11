"""Where a text can be cut before it is encoded, so that what many texts share is encoded once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
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
        parts = json.loads(tokenizer.to_str())
        # those that the library looks for before it normalises
        added = [token for token in parts["added_tokens"] if not token["normalized"]]
        fits = (
            kinds(parts["pre_tokenizer"]) <= INDEPENDENT
            and kinds(parts["post_processor"]) <= SILENT
            and not any(token["single_word"] for token in parts["added_tokens"])
        )
        self._cut_before = {
            token["content"] for token in added if fits and token["special"] and not token["lstrip"]
        }
        names = sorted((token["content"] for token in added), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def parts(self, text: str) -> Iterator[str]:
        """Yield the parts of a text, in their order; their tokens are those of the text."""
        begin = 0
        for found in self._pattern.finditer(text):
            if found[0] in self._cut_before and found.start() > begin:
                yield text[begin : found.start()]
                begin = found.start()
        yield text[begin:]


def kinds(part: Mapping[str, Any] | None) -> set[str]:
    """Return the types of a part of a tokenizer, and of those that it is a sequence of."""
    if part is None:
        return set()
    inner = [*part.get("pretokenizers", ()), *part.get("processors", ())]
    return {str(part["type"])}.union(*map(kinds, inner))
