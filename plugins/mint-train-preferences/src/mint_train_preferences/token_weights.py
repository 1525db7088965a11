"""Rows of pairs whose tokens have weights: a number a token, or spans of characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mint_train.plugin import (
    Completion,
    Datum,
    Renderer,
    RowError,
    kind,
    number,
    over_completion,
)
from mint_train_dpo.rows import FORMS as PAIR_FORMS
from mint_train_dpo.rows import PreferencePair
from mint_train_preferences.fields import ExtendedPair

SIDES = ("chosen", "rejected")
SPAN = ("start", "end", "weight")


class Span(NamedTuple):
    """A weighted part of a text."""

    start: int
    """Its first character, from 0."""
    end: int
    """The character behind its last."""
    weight: float


@dataclass(frozen=True)
class Weights:
    """What the tokens of a completion count: a number for each, or spans of the text."""

    field: str
    """Where the row says it."""
    numbers: Sequence[float] = ()
    spans: Sequence[Span] = ()


@dataclass(frozen=True)
class TokenWeightedPair(ExtendedPair):
    """A pair, and what the tokens of each completion count."""

    weights: tuple[Weights, Weights]


def read_both(row: Mapping[str, Any]) -> tuple[tuple[Weights, Weights], list[str]]:
    """Read the weights of both completions, and name their columns."""
    chosen, rejected = (read_weights(row, side) for side in SIDES)
    return (chosen, rejected), [chosen.field, rejected.field]


def make_weighted(pair: PreferencePair, weights: tuple[Weights, Weights]) -> TokenWeightedPair:
    """Put a pair and its weights together.

    Raises:
        RowError: a span lies outside of its text, or the completion is not a text.
    """
    for completion, one in zip((pair.chosen, pair.rejected), weights, strict=True):
        require_inside(completion, one)
    return TokenWeightedPair(pair, weights)


def require_inside(completion: Completion, weights: Weights) -> None:
    """Refuse spans that do not lie in a text.

    Raises:
        RowError: naming the first.
    """
    if weights.spans and not isinstance(completion, str):
        raise RowError(weights.field, "holds spans, and the completion is not a text but messages")
    for index, (start, end, _) in enumerate(weights.spans):
        if end > len(completion):
            raise RowError(
                f"{weights.field}[{index}]",
                f"is from {start} to {end}, outside of the text's {len(completion)} characters",
            )


FORMS = PAIR_FORMS.extended(read_both, make_weighted)
"""Every form of a pair with token weights."""


def read_weights(row: Mapping[str, Any], side: str) -> Weights:
    """Read the weights of a completion: numbers from 0, or spans of its text.

    Args:
        row: the row.
        side: `chosen` or `rejected`.

    Raises:
        RowError: they are missing or wrong, or both are given.
    """
    by_token, by_span = f"{side}_token_weights", f"{side}_spans"
    if row.get(by_token) is None and row.get(by_span) is None:
        raise RowError(by_token, f"is missing, and so is {by_span}; this loss needs one of them")
    if row.get(by_token) is None:
        spans = [
            read_span(item, f"{by_span}[{index}]")
            for index, item in enumerate(read_list(row[by_span], by_span, "spans"))
        ]
        return Weights(by_span, spans=spans)
    if row.get(by_span) is not None:
        raise RowError(by_span, f"stands beside {by_token}; give one of them")
    numbers = [
        read_weight(item, f"{by_token}[{index}]")
        for index, item in enumerate(read_list(row[by_token], by_token, "numbers"))
    ]
    if not any(numbers):
        raise RowError(by_token, "holds zeros alone, so nothing of the completion would count")
    return Weights(by_token, numbers=numbers)


def read_list(value: object, field: str, of: str) -> Sequence[Any]:
    """Return a list that is not empty.

    Raises:
        RowError: it is something else.
    """
    if not isinstance(value, list) or not value:
        raise RowError(field, f"must be a list of {of}, not {kind(value)}")
    return value


def read_weight(value: object, field: str) -> float:
    """Return a weight, 0 or more."""
    weight = number(value, field)
    if weight < 0:
        raise RowError(field, f"is {weight:g}; a weight is 0 or more")
    return weight


def read_span(value: object, field: str) -> Span:
    """Return a span of characters.

    Raises:
        RowError: it is something else.
    """
    if not isinstance(value, Mapping) or set(value) != set(SPAN):
        raise RowError(field, 'must be a span, such as {"start": 0, "end": 4, "weight": 2}')
    start, end = (value[name] for name in SPAN[:2])
    if not all(isinstance(position, int) and not isinstance(position, bool) for position in (start, end)):
        raise RowError(field, "start and end must be whole numbers of characters")
    if not 0 <= start < end:
        raise RowError(field, f"is from {start} to {end}; it must begin at 0 or later, and end behind that")
    return Span(start, end, read_weight(value["weight"], f"{field}.weight"))


def datum_weights(datum: Datum, completion: Completion, weights: Weights, renderer: Renderer) -> list[float]:
    """Lay a completion's weights over its datum's target tokens; 0.0 over the prompt.

    Args:
        datum: whose completion may have been cut.
        completion: the whole completion.
        weights: of the whole completion.
        renderer: what the datum was made with.

    Raises:
        RowError: there are more or fewer weights than tokens, or they cannot be aligned.
    """
    if renderer.rendering.form == "template":
        raise RowError(weights.field, "cannot be used with a chat template, which sets tokens of its own")
    tokens = renderer.completion_tokens(completion)
    count = len(weights.numbers)
    if weights.spans:
        whole = span_weights(str(completion), weights, renderer)
    elif count in (len(tokens), len(tokens) - 1):
        whole = [*weights.numbers, 1.0][: len(tokens)]
    else:
        raise RowError(weights.field, f"holds {count} weights for the completion's {len(tokens)} tokens")
    return over_completion(datum, whole)


def span_weights(text: str, spans: Weights, renderer: Renderer) -> list[float]:
    """Return the weight of each token: that of the last span that it overlaps, else 1.

    Raises:
        RowError: the tokenizer does not say where its tokens lie in the text.
    """
    offsets = renderer.token_offsets(text, spans.field)
    weights = [1.0] * len(offsets)
    for start, end, weight in spans.spans:
        for index, (first, last) in enumerate(offsets):
            if first < end and last > start:
                weights[index] = weight
    return weights
