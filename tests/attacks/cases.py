"""How many cases the generators of attacks make: few in each run of the tests, all of them where asked."""

from __future__ import annotations

import os
import random
from typing import Any

LONG = os.environ.get("MINT_TRAIN_ATTACKS") == "long"
ALL = 500


def seeds(short: int) -> range:
    """The seeds of a generator: `short` of them, or with MINT_TRAIN_ATTACKS=long all."""
    return range(max(short, ALL) if LONG else short)


STRANGE: list[Any] = [
    None, True, -1, 2**70, 1e999, float("nan"), "", "x" * 3000, "\x1b[2J\u202e", "a\nb", "\ud800", [], {},
    [[[]]], {"a": {"b": None}}, ["x"], [0], {"type": "x"}, "../../etc", "tinker://x\n", 0.5,
]  # fmt: skip


def mutated(value: Any, dice: random.Random) -> Any:
    """Change one thing in a value of JSON: a part is dropped, doubled or replaced by something strange."""
    if dice.random() < 0.25 or not isinstance(value, dict | list) or not value:
        return dice.choice(STRANGE)
    if isinstance(value, dict):
        key = dice.choice(sorted(value))
        kind = dice.random()
        if kind < 0.3:
            return {name: inner for name, inner in value.items() if name != key}
        if kind < 0.4:
            return {**value, "unknown": dice.choice(STRANGE)}
        return {**value, key: mutated(value[key], dice)}
    position = dice.randrange(len(value))
    if dice.random() < 0.3:
        return value[:position] + value[position + 1 :]
    if dice.random() < 0.2:
        return value + value[position:]
    return [*value[:position], mutated(value[position], dice), *value[position + 1 :]]
