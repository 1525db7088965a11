"""Five hundred mangled conversations: each is rendered or refused by name, in every form of rendering."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
from families import FAMILIES, family

from mint_train.errors import DoesNotFit, RowError
from mint_train.losses.weighted_sum import open_loss
from mint_train.rendering.options import Rendering
from mint_train.rendering.renderer import Renderer
from mint_train.rendering.special_tokens import GuardedTokenizer

SEEDS = 5
CONVERSATIONS_A_SEED = 100
VALUES: list[Any] = [
    None, "", " ", "text", "<think>\nx", "</think>", "<|im_end|>", "\ud800", 0, 1.5, True, [], {}, ["a"],
    [None],
    [{"type": "text", "text": "part"}], [{"type": "image_url"}], [{"role": "user"}], '[{"name": "f"}]', "{",
    [{"function": {"name": "f", "arguments": "{"}}], [{"name": "f", "arguments": {"a": None}}],
]  # fmt: skip
KEYS = [
    "role", "content", "from", "value", "tool_calls", "tool_call_id", "name", "reasoning_content", "thinking",
    "function_call", "images", "weight", "extra",
]  # fmt: skip
ROLES = [
    "system",
    "user",
    "assistant",
    "tool",
    "human",
    "gpt",
    "observation",
    "function_call",
    "parrot",
    "Tool",
]
COLUMNS = [
    "system",
    "tools",
    "history",
    "context",
    "input",
    "chat_template_kwargs",
    "initial_reason_steps",
    "label",
]


@cache
def guarded(name: str) -> GuardedTokenizer:
    """The tokenizer of a family, as a run has it."""
    return GuardedTokenizer(family(name), "split")


def conversation(dice: random.Random) -> list[Any]:
    """Messages, most of them right."""
    messages: list[Any] = []
    for _ in range(dice.randint(1, 5)):
        message: dict[str, Any] = {"role": dice.choice(ROLES[:4]), "content": dice.choice(["a", "b c", "d"])}
        if dice.random() < 0.2:
            message[dice.choice(KEYS)] = dice.choice([*VALUES, *ROLES])
        if dice.random() < 0.05:
            messages.append(dice.choice(VALUES))
        messages.append(message)
    if dice.random() < 0.7:
        messages.append({"role": "assistant", "content": dice.choice(["e", "f"])})
    return messages


def mangled_row(dice: random.Random) -> dict[str, Any]:
    """A row of a prompt with two answers, or two whole conversations, with whatever else."""
    start = conversation(dice)
    row: dict[str, Any] = {}
    if dice.random() < 0.6:
        row["prompt"] = dice.choice(
            ["question", [*start, {"role": "user", "content": "q"}], dice.choice(VALUES)]
        )
    for side in ("chosen", "rejected"):
        end = conversation(dice)[-2:]
        row[side] = dice.choice([f"{side} text", end, [*start, *end], end[-1], dice.choice(VALUES)])
    if dice.random() < 0.3:
        row[dice.choice(COLUMNS)] = dice.choice(VALUES)
    return row


@pytest.mark.parametrize("seed", range(SEEDS))
def test_mangled_conversations(seed: int) -> None:
    dice = random.Random(seed)
    loss = open_loss("dpo", {})
    rendered = refused = 0
    for _ in range(CONVERSATIONS_A_SEED):
        row = mangled_row(dice)
        name = dice.choice([name for name, (template, *_) in FAMILIES.items() if template])
        rendering = Rendering(dice.choice(["recipe", "template", "template", "raw"]))
        renderer = Renderer(guarded(name), dice.choice([None, 40]), rendering)
        problem = ""
        try:
            datums = loss.flatten(loss.parse_row(row), renderer)
        except (RowError, DoesNotFit) as error:
            problem = str(error)
        if problem:
            refused += 1
            assert "\n" not in problem
            continue
        rendered += 1
        assert len(datums) == 2
        assert all(datum.loss_fn_inputs["weights"].to_numpy().any() for datum in datums)
    assert rendered
    assert refused > 20
