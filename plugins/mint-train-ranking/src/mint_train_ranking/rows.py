"""The row of a ranking loss: a prompt with two or more completions, best first or with scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mint_train.data.messages import ChatMessage, completion, prompt, require
from mint_train.data.readers import kind
from mint_train.errors import RowError


@dataclass(frozen=True)
class RankedCompletions:
    """The completions of one prompt, best first."""

    prompt: str | list[ChatMessage]
    completions: tuple[str, ...]
    labels: tuple[float, ...]
    """How good each is, falling from 1.0 (the best) to 0.0 (the worst): its score, or its place, rescaled."""


def parse_ranked(row: Mapping[str, Any]) -> RankedCompletions:
    """Read ranked completions from a row: `prompt` (or `conversations`), `completions`, perhaps `scores`.

    Raises:
        RowError: naming the field that is missing or wrong.
    """
    field = "conversations" if "conversations" in row else "prompt"
    question = prompt(require(row, field), field)
    completions = parse_completions(require(row, "completions"))
    if row.get("scores") is None:
        scores = [float(place) for place in reversed(range(len(completions)))]
    else:
        scores = parse_scores(row["scores"], len(completions))
    best_first = sorted(range(len(scores)), key=lambda place: -scores[place])
    low, high = min(scores), max(scores)
    return RankedCompletions(
        question,
        tuple(completions[place] for place in best_first),
        tuple(scores[place] / (high - low) - low / (high - low) for place in best_first),
    )


def parse_completions(value: object) -> list[str]:
    """Return the texts of two or more different completions.

    Raises:
        RowError: naming the completion that is wrong.
    """
    if not isinstance(value, list):
        raise RowError("completions", f"must be a list of completions, not {kind(value)}")
    if len(value) < 2:
        raise RowError("completions", f"holds {len(value)}; a ranking needs two or more")
    texts = [completion(item, f"completions[{place}]") for place, item in enumerate(value)]
    for place, text in enumerate(texts):
        if (first := texts.index(text)) < place:
            raise RowError(f"completions[{place}]", f"is equal to completions[{first}]; remove one of them")
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
