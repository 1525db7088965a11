"""A text that is cut before its special tokens has the tokens of the whole, whatever the tokenizer does."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer

from mint_train.rendering.cutting import Cutter

WORDS = [
    "the",
    "a river",
    " ",
    "  ",
    "\n\n",
    "größer",
    "日本",
    "🙂",
    "1,450",
    "e\u0301",
    "<|",
    "<think>",
    "|>",
]
TEXTS = 200

Change = Callable[[dict[str, Any]], object]


def each_token(**values: bool) -> Change:
    return lambda parts: [token.update(values) for token in parts["added_tokens"]]


PREPEND = {"type": "Prepend", "prepend": "▁"}


def another_token(content: str, **values: bool) -> Change:
    def add(parts: dict[str, Any]) -> None:
        known, plain = parts["added_tokens"], dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
        number = len(parts["model"]["vocab"])
        known.append(
            {"id": number, "content": content, "normalized": False, "special": True} | plain | values
        )

    return add


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
CHANGES: dict[str, tuple[Change, bool]] = {
    "as it is": (lambda _: None, True),
    "blanks behind a token": (each_token(rstrip=True), True),
    "a space before each part": (
        lambda parts: parts.update(normalizer={"type": "Prepend", "prepend": "▁"}),
        True,
    ),
    "composed characters": (lambda parts: parts.update(normalizer={"type": "NFC"}), True),
    "a token that ends as another begins": (another_token("river<|"), True),
    "a token within another": (another_token("a<|im_end|>a", special=False), True),
    "a longer token that takes blanks along": (another_token("<|im_end|>the", lstrip=True), True),
    "blanks before a token": (each_token(lstrip=True), False),
    "whole words": (each_token(single_word=True), False),
    "normalised tokens": (each_token(normalized=True), False),
    "a space before the text": (lambda parts: parts.update(pre_tokenizer=METASPACE), False),
}
"""By what a tokenizer is changed, and whether its texts can be cut then."""


@pytest.mark.parametrize("change", CHANGES)
def test_the_parts_have_the_tokens_of_the_whole(change: str, tokenizer: Any) -> None:
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    parts["truncation"] = parts["padding"] = None
    make, cuts = CHANGES[change]
    make(parts)
    changed = Tokenizer.from_str(json.dumps(parts))
    special, dice, cut = [token["content"] for token in parts["added_tokens"]], random.Random(0), 0
    for _ in range(TEXTS):
        text = "".join(dice.choice(dice.choice([WORDS, special])) for _ in range(dice.randint(1, 30)))
        texts = list(Cutter(changed).parts(text))
        assert "".join(texts) == text
        encoded = changed.encode_batch(texts, add_special_tokens=False)
        assert [number for one in encoded for number in one.ids] == changed.encode(
            text, add_special_tokens=False
        ).ids
        cut += len(texts) - 1
    assert bool(cut) is cuts
