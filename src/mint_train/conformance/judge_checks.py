"""The checks of a judge: what it scores may not depend on how it is asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mint_train.conformance.material import ConformanceError
from mint_train.errors import counted
from mint_train.judging.judge import Judge, Scores
from mint_train.rows.candidates import Candidates

TOLERANCE = 1e-4
"""How far two scores of one completion may differ, relative to the larger: a model pads what it batches."""
BUNDLED = (
    Candidates(
        "What is 2 + 3?",
        ("5", "The answer is 5.", "Six, I think.", "2 + 3 = 5, so the answer is 5", ""),
        {"prompt": "What is 2 + 3?", "answer": "5"},
    ),
    Candidates(
        [
            {"role": "system", "content": "Answer in metric units."},
            {"role": "user", "content": "How far is it?"},
        ],
        ("About 12 km.", "About 7 miles.", "Nobody knows. [[A]]", "Größer als 10 km: 日本 🙂"),
        {"answer": "12 km"},
    ),
    Candidates("Name a river.", ("The Danube.",), {"prompt": "Name a river.", "answer": "Danube"}),
)
"""Prompts with their completions, for a judge that gets no others."""


@dataclass(frozen=True)
class JudgeMaterial:
    """A judge, and what it is asked to score."""

    judge: Judge
    prompts: Sequence[Candidates]

    @cached_property
    def scores(self) -> list[Scores]:
        """What the judge says of all prompts in one batch."""
        return self.judge.score(self.prompts)


def candidates_of(row: Mapping[str, Any]) -> Candidates:
    """Return what a row gives a judge to score: its columns `prompt` and `completions`.

    Raises:
        ConformanceError: it lacks one of them.
    """
    prompt, completions = row.get("prompt"), row.get("completions")
    texts = isinstance(completions, list) and all(isinstance(text, str) for text in completions)
    if not isinstance(prompt, str | list) or not prompt or not completions or not texts:
        raise ConformanceError("a row to check a judge with has a prompt, and completions: a list of texts")
    return Candidates(prompt, completions, dict(row))


def scores_are_finite(material: JudgeMaterial) -> str:
    """Check that every completion gets a finite number, or is left out."""
    found = [score for scores in material.scores for score in scores]
    known = [score for score in found if score is not None]
    if not known:
        raise ConformanceError(f"all {len(found)} completions are left out")
    return f"{counted(len(found), 'completion')}, {len(found) - len(known)} left out"


def same_twice(material: JudgeMaterial) -> str:
    """Check that judging again gives the same scores."""
    compare(material.scores, material.judge.score(material.prompts), "in a second call")
    return counted(len(material.prompts), "prompt")


def order_does_not_matter(material: JudgeMaterial) -> str:
    """Check that completions in the reverse order get their own scores."""
    reverse = [replace(one, completions=tuple(reversed(one.completions))) for one in material.prompts]
    compare(material.scores, [scores[::-1] for scores in material.judge.score(reverse)], "in another order")
    return "reversed"


def batch_gives_what_singles_give(material: JudgeMaterial) -> str:
    """Check that a prompt's scores do not depend on the other prompts in its batch."""
    singles = [material.judge.score([one])[0] for one in material.prompts]
    compare(material.scores, singles, "in a batch of its own")
    return counted(len(singles), "prompt") + " one by one"


def equal_completions_score_alike(material: JudgeMaterial) -> str:
    """Check that two equal completions get equal scores."""
    doubled = [replace(one, completions=(*one.completions, one.completions[0])) for one in material.prompts]
    for one, scores in zip(doubled, material.judge.score(doubled), strict=True):
        if not alike(scores[0], scores[-1]):
            raise ConformanceError(
                f'the completion "{one.completions[0][:40]}" is there twice: {scores[0]}, {scores[-1]}'
            )
    return "one of each prompt repeated"


def compare(expected: Sequence[Scores], found: Sequence[Scores], how: str) -> None:
    """Refuse scores that differ.

    Raises:
        ConformanceError: naming the first one.
    """
    for prompt, pair in enumerate(zip(expected, found, strict=True)):
        for completion, (first, second) in enumerate(zip(*pair, strict=True)):
            if not alike(first, second):
                raise ConformanceError(
                    f"completion {completion} of prompt {prompt} gets {first}, and {how} {second}"
                )


def alike(first: float | None, second: float | None) -> bool:
    """Return whether two scores are equal up to rounding."""
    if first is None or second is None:
        return first is second
    return math.isclose(first, second, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


JUDGE_CHECKS: Mapping[str, Callable[[JudgeMaterial], str]] = {
    "each completion gets a score or none": scores_are_finite,
    "a second call gives the same": same_twice,
    "the order of completions does not matter": order_does_not_matter,
    "a batch gives what singles give": batch_gives_what_singles_give,
    "equal completions score alike": equal_completions_score_alike,
}
