"""The row of a ranking loss: a prompt with two or more completions, best first or with scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.forms import Form, combine, recognise
from mint_train.rows.messages import ChatMessage, completion
from mint_train.rows.prompts import PROMPTS
from mint_train.rows.row import kind


@dataclass(frozen=True)
class RankedCompletions:
    """The completions of one prompt, best first."""

    prompt: str | list[ChatMessage]
    completions: tuple[str, ...]
    labels: tuple[float, ...]
    """How good each is, falling from 1.0 (the best) to 0.0 (the worst): its score, or its place, rescaled."""


def parse_ranked(row: Mapping[str, Any]) -> RankedCompletions:
    """Read ranked completions from a row in one of `FORMS`.

    Raises:
        RowError: naming the field that is missing or wrong, or the two forms that the row suits.
    """
    ranked: RankedCompletions = recognise(row, FORMS).read(row)
    return ranked


def ranked_field(field: str) -> Form:
    """Make the form of a list of completions, best first, or with `scores`."""

    def read(row: Mapping[str, Any]) -> tuple[list[str], list[float]]:
        completions = parse_completions(row[field], field)
        if row.get("scores") is None:
            return completions, [float(place) for place in reversed(range(len(completions)))]
        return completions, parse_scores(row["scores"], len(completions))

    return Form(f"ranked {field}", (field,), read)


def best_first(question: str | list[ChatMessage], ranked: tuple[list[str], list[float]]) -> RankedCompletions:
    """Order completions by their scores, which become labels from 1.0 to 0.0."""
    completions, scores = ranked
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    low, high = min(scores), max(scores)
    return RankedCompletions(
        question,
        tuple(completions[place] for place in order),
        tuple(scores[place] / (high - low) - low / (high - low) for place in order),
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
    texts = [completion(item, f"{field}[{place}]") for place, item in enumerate(value)]
    for place, text in enumerate(texts):
        if (first := texts.index(text)) < place:
            raise RowError(f"{field}[{place}]", f"is equal to {field}[{first}]; remove one of them")
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
    for place, score in enumerate(value):
        field = f"scores[{place}]"
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
