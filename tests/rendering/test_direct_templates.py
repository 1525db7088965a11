"""A template that is called directly writes what transformers writes, and a row's texts are rendered once."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, family

from mint_train.groups.build import build_dataset
from mint_train.groups.examples import read_examples
from mint_train.losses.weighted_sum import open_loss
from mint_train.rendering import direct_templates
from mint_train.rendering.direct_templates import DirectTemplates
from mint_train.rendering.options import Rendering
from mint_train.rendering.renderer import Renderer
from mint_train.rendering.special_tokens import GuardedTokenizer
from mint_train.rows.readers import open_data
from mint_train.settings.model import Settings

TEMPLATED = [name for name, (template, *_) in FAMILIES.items() if template]
TEXTS = ["Blue.", "", " \n", "  two\n", "{{ 1 }}", "<think>\nIt is.\n</think>\n\nYes.", "</think>", "日本 🙂"]
ROLES = ["system", "user", "assistant", "tool", "parrot"]
MORE: list[dict[str, Any]] = [
    {"reasoning_content": "It is."}, {"thinking": "It is."}, {"content": None}, {"content": ["a"]},
    {"name": "x"}, {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]},
]  # fmt: skip
ARGUMENTS: list[dict[str, Any]] = [
    {}, {}, {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"enable_thinking": False},
    {"chat_template": "{{ bos_token }}{{ messages | length }}{{ tools }}{{ add_generation_prompt }}"},
]  # fmt: skip


def written(render: Callable[..., Any], *given: Any, **arguments: Any) -> str:
    """What a function renders, or what it raises."""
    try:
        return str(render(*given, **arguments))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("name", TEMPLATED)
def test_the_text_is_that_of_transformers(name: str) -> None:
    tokenizer, dice, direct = family(name), random.Random(name), set()
    templates = DirectTemplates(tokenizer)
    for _ in range(300):
        messages = [
            {"role": dice.choice(ROLES[: dice.choice([3, 5])]), "content": dice.choice(TEXTS)}
            for _ in range(dice.randint(0, 4))
        ]
        if messages and dice.random() < 0.2:
            messages[-1] |= dice.choice(MORE)
        arguments = {"tools": None, "add_generation_prompt": dice.random() < 0.5} | dice.choice(ARGUMENTS)
        own = written(tokenizer.apply_chat_template, messages, tokenize=False, **arguments)
        assert written(templates.render, messages, **arguments) == own
        direct.add(direct_templates.is_direct(messages, arguments))
    assert direct == {True, False}
    assert None not in templates._known.values()


@pytest.mark.parametrize("made", [None, lambda _: "something else"])
def test_a_template_that_cannot_be_called_directly_is_left_to_transformers(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_templates, "direct_renderer", lambda *_: made)
    tokenizer, asked = family("chatml"), [{"role": "user", "content": "Which one?"}]
    templates = DirectTemplates(tokenizer)
    texts = {templates.render(asked, add_generation_prompt=True) for _ in range(2)}
    assert texts == {tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)}


def rows_with(mark: str) -> list[dict[str, Any]]:
    """Rows that hold a text in their prompt, in each completion, in their reasoning, or nowhere."""
    texts = ["Name one.", "Rhine.", "Danube.", "It is long."]
    marked = [[text + mark * (index == held) for index, text in enumerate(texts)] for held in range(5)]
    return [
        {
            "prompt": [{"role": "user", "content": asked}],
            "chosen": [{"role": "assistant", "content": chosen, "reasoning_content": thought}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for asked, chosen, rejected, thought in marked
    ]


@pytest.mark.parametrize("policy", ["split", "allow"])
def test_rows_together_have_the_tokens_of_each_alone(
    write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, policy: Any
) -> None:
    rendered: list[str] = []
    render = DirectTemplates.render

    def noted(self: DirectTemplates, messages: Any, **more: Any) -> str:
        rendered.append(messages[0]["content"])
        return render(self, messages, **more)

    monkeypatch.setattr(DirectTemplates, "render", noted)
    loss, tokenizer, rendering = open_loss("dpo", {}), copy.deepcopy(family("qwen3")), Rendering("template")
    examples = read_examples(open_data(write_rows(rows_with("<|im_end|>"))), loss)
    settings = Settings(loss="any", special_tokens=policy, render="template")
    dataset = build_dataset(examples, loss, tokenizer, settings)
    # once for the row without a special token, and twice for those whose tokens are noted with their lines
    assert len([text for text in rendered if "Name one." in text]) == 3 + 2 * 3 * 4
    for example, group in zip(examples, dataset.groups, strict=True):
        alone = loss.flatten(example.value, Renderer(GuardedTokenizer(tokenizer, policy), None, rendering))
        for one, other in zip(alone, group.datums, strict=True):
            assert one.model_input.to_ints() == other.model_input.to_ints()  # type: ignore[union-attr]
    assert [source.line for source, _ in dataset.special] == [1, 2, 3, 4]
