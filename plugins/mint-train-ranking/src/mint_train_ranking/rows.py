"""The row of a ranking loss: a prompt with two or more completions, best first or with scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mint_train.plugin import PROMPTS, ChatMessage, Form, RowError, combine, completion, kind


@dataclass(frozen=True)
class RankedCompletions:
    """The completions of one prompt, best first."""

    prompt: str | list[ChatMessage]
    completions: tuple[str, ...]
    labels: tuple[float, ...]
    """How good each is, falling from 1.0 (the best) to 0.0 (the worst): its score, or its rank, rescaled."""


def ranked_field(field: str) -> Form:
    """Return the form of a list of completions, best first, or with `scores`."""

    def read(row: Mapping[str, Any]) -> tuple[list[str], list[float]]:
        completions = parse_completions(row[field], field)
        if row.get("scores") is None:
            return completions, [float(rank) for rank in reversed(range(len(completions)))]
        return completions, parse_scores(row["scores"], len(completions))

    return Form(f"ranked {field}", (field,), read)


def best_first(question: str | list[ChatMessage], ranked: tuple[list[str], list[float]]) -> RankedCompletions:
    """Order completions by their scores, which become labels from 1.0 to 0.0."""
    completions, scores = ranked
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    low, high = min(scores), max(scores)
    return RankedCompletions(
        question,
        tuple(completions[index] for index in order),
        tuple(scores[index] / (high - low) - low / (high - low) for index in order),
    )


FORMS = combine(PROMPTS, [ranked_field("completions"), ranked_field("output")], best_first)
"""Every form of ranked completions."""


def parse_completions(value: object, field: str) -> list[str]:
    """Return the texts of two or more different completions.

    Raises:
        RowError: naming the completion that is wrong.
    """
    if not isinstance(value, list):
        raise RowError(field, f"must be a list of completions, not {kind(value)}")
    if len(value) < 2:
        raise RowError(field, f"holds {len(value)}; a ranking needs two or more")
    texts = [completion(item, f"{field}[{index}]") for index, item in enumerate(value)]
    for index, text in enumerate(texts):
        if (first := texts.index(text)) < index:
            raise RowError(f"{field}[{index}]", f"is equal to {field}[{first}]; remove one of them")
    return texts


def parse_scores(value: object, count: int) -> list[float]:
    """Return as many different finite scores as there are completions.

    Raises:
        RowError: naming the score that is wrong.
    """
    if not isinstance(value, list):
        raise RowError("scores", f"must be a list of numbers, not {kind(value)}")
    if len(value) != count:
        raise RowError("scores", f"holds {len(value)} for {count} completions")
    scores: list[float] = []
    for index, score in enumerate(value):
        field = f"scores[{index}]"
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise RowError(field, f"must be a number, not {kind(score)}")
        if not abs(score) < MAX_SCORE or math.isnan(score):
            raise RowError(field, f"is {score}; scores must be finite and below {MAX_SCORE:g} in size")
        if score in scores:
            raise RowError(field, f"is equal to scores[{scores.index(score)}]; a ranking has no ties")
        scores.append(float(score))
    return scores


MAX_SCORE = 1e100
"""Far above any score, and far below where differences of floats overflow."""
