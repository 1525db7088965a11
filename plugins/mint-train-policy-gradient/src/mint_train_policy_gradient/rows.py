"""The row of an offline policy gradient: a sampled completion, its logprobs when sampled, its advantage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mint_train.plugin import PROMPTS, Form, Prompt, RowError, combine, kind

ROUNDING = 1e-3
"""A sampler's logprob may round to this much above zero."""


@dataclass(frozen=True)
class Rollout:
    """One sampled completion."""

    prompt: Prompt | list[int]
    """Text, messages, or token ids."""
    completion_tokens: list[int]
    old_logprobs: list[float]
    """Per completion token, nats, under the policy that sampled it."""
    advantages: list[float]
    """Per completion token."""


def read_sample(row: Mapping[str, Any]) -> tuple[list[int], list[float], list[float]]:
    """Read the tokens of a completion, their old logprobs and their advantages."""
    tokens = token_ids(row["completion_tokens"], "completion_tokens")
    old = numbers(row["old_logprobs"], "old_logprobs", len(tokens))
    for index, logprob in enumerate(old):
        if logprob > ROUNDING:
            raise RowError(f"old_logprobs[{index}]", f"is {logprob}; a logprob is never above 0")
    advantage = row["advantage"]
    if isinstance(advantage, list):
        return tokens, old, numbers(advantage, "advantage", len(tokens))
    return tokens, old, [number(advantage, "advantage")] * len(tokens)


def token_ids(value: object, field: str) -> list[int]:
    """Return a list of at least one token id.

    Raises:
        RowError: it is something else.
    """
    if not isinstance(value, list):
        raise RowError(field, f"must be a list of token ids, not {kind(value)}")
    if not value:
        raise RowError(field, "is an empty list of token ids")
    for index, token in enumerate(value):
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise RowError(f"{field}[{index}]", f"must be a token id, a whole number from 0, not {token!r}")
    return value


def numbers(value: object, field: str, count: int) -> list[float]:
    """Return a list of one finite number per completion token.

    Raises:
        RowError: it is something else.
    """
    if not isinstance(value, list):
        raise RowError(field, f"must be a list of numbers, not {kind(value)}")
    if len(value) != count:
        raise RowError(field, f"holds {len(value)} numbers for {count} completion tokens")
    return [number(item, f"{field}[{index}]") for index, item in enumerate(value)]


def number(value: object, field: str) -> float:
    """Return a finite number.

    Raises:
        RowError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(field, f"must be a number, not {kind(value)}")
    if not abs(value) < MAX_NUMBER or math.isnan(value):
        raise RowError(field, f"is {value}; it must be finite and below {MAX_NUMBER:g} in size")
    return float(value)


MAX_NUMBER = 1e6
"""Far above any logprob or advantage, and within what float32 multiplies without overflow."""

FORMS = combine(
    [
        *PROMPTS,
        Form("token ids", ("prompt_tokens",), lambda row: token_ids(row["prompt_tokens"], "prompt_tokens")),
    ],
    [Form("sampled completions", ("completion_tokens", "old_logprobs", "advantage"), read_sample)],
    lambda prompt, sample: Rollout(prompt, *sample),
)
"""Every form of a rollout."""
