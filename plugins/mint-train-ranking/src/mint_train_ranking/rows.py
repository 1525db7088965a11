"""The row of a ranking loss: a prompt with two or more completions, best first or with ranks or scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mint_train.plugin import Completion, Forms, Prompt, RowError, compared_answers, graded_lists


@dataclass(frozen=True)
class RankedCompletions:
    """The completions of one prompt, best first."""

    prompt: Prompt
    completions: tuple[Completion, ...]
    labels: tuple[float, ...]
    """How good each is, falling from 1.0 (the best) to 0.0 (the worst): its score or its rank, rescaled."""
    grades: tuple[float, ...] = ()
    """Its score, or its rank below 0, as the row has it."""


def make_ranking(
    prompt: Prompt, completions: Sequence[Completion], grades: Sequence[float]
) -> RankedCompletions:
    """Put a prompt and its completions together; their grades become labels from 1.0 to 0.0.

    Raises:
        RowError: two completions are equal, or equally good.
    """
    for index, completion in enumerate(completions):
        if (first := completions.index(completion)) < index:
            raise RowError(
                "completions", f"number {index} from the best is equal to number {first}; remove one"
            )
    for index, (better, worse) in enumerate(pairwise(grades)):
        if better == worse:
            problem = f"the completions {index} and {index + 1} from the best are equally good ({better:g})"
            advice = "--on-bad-row skip leaves such rows out, and --loss dpo compares the best with the worst"
            raise RowError("scores", f"{problem}, and a ranking has no ties; {advice}")
    low, high = grades[-1], grades[0]
    labels = tuple(grade / (high - low) - low / (high - low) for grade in grades)
    return RankedCompletions(prompt, tuple(completions), labels, tuple(grades))


FORMS = Forms([*graded_lists(implicit=("completions", "output")), *compared_answers()], make_ranking)
"""Every form of ranked completions."""
