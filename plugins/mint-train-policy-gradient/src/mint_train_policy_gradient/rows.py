"""The rows of rollouts: completions of a prompt that a policy sampled, with their rewards or advantages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mint_train.plugin import (
    PROMPTS,
    Answers,
    Completion,
    Form,
    Forms,
    Prompt,
    RowError,
    Survey,
    from_json,
    kind,
    read_answers,
)

ROUNDING = 1e-3
"""A sampler's logprob may round to this much above zero."""
MAX_NUMBER = 1e6
"""Far above any logprob or advantage, and within what float32 multiplies without overflow."""
TOKENS, TEXTS, TEXT = "completion_tokens", "completions", "completion"
OLD_LOGPROBS = "old_logprobs"
SINGLE, SEVERAL = ("advantage", "reward"), ("rewards", "advantages")

Sample: TypeAlias = Completion | list[int]


@dataclass(frozen=True)
class Rollout:
    """The completions that a policy sampled for one prompt; each list has an entry per completion."""

    prompt: Prompt | list[int]
    """Text, messages, or token ids."""
    completions: tuple[Sample, ...]
    rewards: tuple[float, ...] | None
    """None where the row has advantages."""
    advantages: tuple[float | list[float], ...] | None
    """For a whole completion, or for each of its tokens; None where the row has rewards."""
    old_logprobs: tuple[list[float], ...] | None
    """Per completion token, nats, under the policy that sampled it; None where the row has none."""


def sample_form(name: str, completions: str, signal: str) -> Form:
    """Make the form of a row whose completions and what they are worth stand in two columns.

    `signal` is the second column, or "" for one completion, or for several, that are worth nothing yet.
    """

    def read(row: Mapping[str, Any], _: Survey) -> Answers:
        return read_samples(row, completions, signal)

    def suits(row: Mapping[str, Any]) -> bool:
        nested = is_nested(from_json(row[completions]))
        return bool(signal) or completions != TOKENS or nested == name.startswith("lists")

    return Form(name, (completions, signal) if signal else (completions,), read, suits)


def is_nested(value: object) -> bool:
    """Return whether a value is a list of lists."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], list)


def read_samples(row: Mapping[str, Any], field: str, signal: str) -> Answers:
    """Read the completions of a row, and their rewards or advantages.

    Raises:
        RowError: a list is not one, or another length; old logprobs stand beside texts.
    """
    found = from_json(row[field])
    several = signal in SEVERAL or (not signal and (field == TEXTS or is_nested(found)))
    if several and (not isinstance(found, list) or not found):
        raise RowError(field, f"must be a list with an entry per completion, not {kind(found)}")
    if several:
        samples, names = from_json(row[field], field), entries(field, found)
    else:  # a text may be JSON and mean no more than it says
        samples, names = [found if field == TOKENS else row[field]], [field]
    old, read = None, frozenset[str]()
    if field == TOKENS:
        samples = [token_ids(one, name) for one, name in zip(samples, names, strict=True)]
        if row.get(OLD_LOGPROBS) is not None:
            old, read = read_old(row[OLD_LOGPROBS], samples, several=several), frozenset({OLD_LOGPROBS})
    elif row.get(OLD_LOGPROBS) is not None:
        raise RowError(OLD_LOGPROBS, f"belong to token ids: give {TOKENS} instead of {field}")
    values = worth(from_json(row[signal]), signal, samples, several=several) if signal else None
    known = (values, None, old) if signal.startswith("reward") else (None, values, old)
    if field == TOKENS:
        return Answers(value=(tuple(samples), *known), read=read)
    return Answers(read_answers(samples, names), names, (None, *known))


def entries(field: str, values: Sequence[object]) -> list[str]:
    """Name the entries of a list."""
    return [f"{field}[{index}]" for index in range(len(values))]


def read_old(value: object, samples: Sequence[list[int]], *, several: bool) -> tuple[list[float], ...]:
    """Read old logprobs: a list of one per token, for each of several completions.

    Raises:
        RowError: a list has another length, or a number is above 0.
    """
    given = list_of(value, OLD_LOGPROBS, len(samples), "completions") if several else [value]
    names = entries(OLD_LOGPROBS, given) if several else [OLD_LOGPROBS]
    old = tuple(
        numbers(one, name, len(tokens)) for one, name, tokens in zip(given, names, samples, strict=True)
    )
    for logprobs, name in zip(old, names, strict=True):
        for index, logprob in enumerate(logprobs):
            if logprob > ROUNDING:
                raise RowError(f"{name}[{index}]", f"is {logprob}; a logprob is never above 0")
    return old


def worth(value: object, field: str, samples: Sequence[object], *, several: bool) -> tuple[Any, ...]:
    """Read rewards or advantages, one per completion; an advantage may be a list of one per token.

    Raises:
        RowError: they are something else, or another number.
    """
    given = list_of(value, field, len(samples), "completions") if several else [value]
    names = entries(field, given) if several else [field]
    found: list[float | list[float]] = []
    for one, name, sample in zip(given, names, samples, strict=True):
        per_token = field.startswith("advantage") and isinstance(one, list) and is_tokens(sample)
        found.append(numbers(one, name, len(sample)) if per_token else number(one, name))  # type: ignore[arg-type]
    return tuple(found)


def is_tokens(sample: object) -> bool:
    """Return whether a completion is token ids."""
    return isinstance(sample, list) and isinstance(sample[0], int)


def list_of(value: object, field: str, count: int, what: str) -> list[Any]:
    """Return a list of a given length.

    Raises:
        RowError: it is something else.
    """
    if not isinstance(value, list):
        raise RowError(field, f"must be a list of numbers, not {kind(value)}")
    if len(value) != count:
        raise RowError(field, f"holds {len(value)} numbers for {count} {what}")
    return value


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
    given = list_of(value, field, count, "completion tokens")
    return [number(item, name) for item, name in zip(given, entries(field, given), strict=True)]


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


def make_rollout(prompt: Prompt | list[int], completions: Sequence[Completion], value: Any) -> Rollout:
    """Put a prompt and its samples together."""
    tokens, *known = value
    return Rollout(prompt, tuple(completions) if tokens is None else tokens, *known)


PROMPT_TOKENS = Form(
    "token ids", ("prompt_tokens",), lambda row: token_ids(row["prompt_tokens"], "prompt_tokens")
)
FORMS = Forms(
    [
        *(sample_form(f"a sampled completion and its {signal}", TOKENS, signal) for signal in SINGLE),
        *(sample_form(f"a completion and its {signal}", TEXT, signal) for signal in SINGLE),
        *(sample_form(f"sampled completions and {signal}", TOKENS, signal) for signal in SEVERAL),
        *(sample_form(f"completions and {signal}", TEXTS, signal) for signal in SEVERAL),
    ],
    make_rollout,
    [*PROMPTS, PROMPT_TOKENS],
)
"""Every form of a rollout."""

SAMPLE_FORMS = Forms(
    [
        sample_form("sampled tokens", TOKENS, ""),
        sample_form("lists of sampled tokens", TOKENS, ""),
        sample_form("single completions", TEXT, ""),
        sample_form("lists of completions", TEXTS, ""),
    ],
    make_rollout,
    [*PROMPTS, PROMPT_TOKENS],
)
"""Every form of samples that need not be worth anything."""
