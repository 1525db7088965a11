"""Spans of a completion: which characters each token covers, and numbers laid over a datum's tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mint_train.backends.local.starter_model import make_starter_tokenizer
from mint_train.errors import RowError
from mint_train.plugin import Renderer, over_completion
from mint_train.rendering.offsets import text_offsets
from mint_train.rendering.options import Rendering

TEXT = "größer 🙂 naïve words"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_starter_tokenizer()


@pytest.mark.parametrize("form", ["recipe", "raw"])
def test_each_token_covers_the_characters_that_it_writes(tokenizer: Any, form: Any) -> None:
    renderer = Renderer(tokenizer, rendering=Rendering(form))
    tokens, offsets = renderer.completion_tokens(TEXT), renderer.token_offsets(TEXT)
    assert len(offsets) == len(tokens)
    assert offsets[-1] == (len(TEXT), len(TEXT)), "the token that ends the completion covers nothing"
    assert {index for first, last in offsets for index in range(first, last)} == set(range(len(TEXT)))
    written = [tokenizer.decode([token]) for token in tokens[:-1]]
    whole = [(one, TEXT[first:last]) for one, (first, last) in zip(written, offsets, strict=False)]
    assert sum(one.strip() == covered.strip() for one, covered in whole if "�" not in one) > 5
    assert all(one.strip() == covered.strip() for one, covered in whole if "�" not in one)


def test_a_template_is_refused_and_so_is_a_tokenizer_without_offsets(tokenizer: Any) -> None:
    with pytest.raises(RowError, match=r"report.*in template form"):
        Renderer(tokenizer, rendering=Rendering("template")).token_offsets("Wet.", "report")
    tokens = Renderer(tokenizer).completion_tokens("Wet.")
    with pytest.raises(RowError, match=r"report.*does not say where they lie"):
        text_offsets("Wet.", tokens, SimpleNamespace(encode=tokenizer.encode), "report")


@pytest.mark.parametrize("cut", [0, 2])
def test_numbers_are_laid_over_the_completion_alone(tokenizer: Any, cut: int) -> None:
    whole = Renderer(tokenizer)
    prompt, completion = whole.prompt_tokens("Name a river."), whole.completion_tokens("The Danube.")
    numbers = [float(number) for number in range(1, len(completion) + 1)]
    datum = Renderer(tokenizer, max_length=len(prompt) + len(completion) - cut).datum(
        "Name a river.", "The Danube."
    )
    kept = numbers[: len(numbers) - cut]
    assert over_completion(datum, numbers) == [0.0] * (len(prompt) - 1) + kept
