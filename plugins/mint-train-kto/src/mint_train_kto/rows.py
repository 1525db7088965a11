"""The row of a loss on rated completions: a prompt, one completion, and a thumb up or down."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mint_train.plugin import (
    Answers,
    Completion,
    DataError,
    Form,
    Forms,
    Prompt,
    RowError,
    Survey,
    is_good,
    read_answer,
    read_answers,
)

COMPLETIONS = ("completion", "output", "response", "answer")
LABELS = ("label", "kto_tag", "thumbs_up", "desirable")


@dataclass(frozen=True)
class RatedCompletion:
    """One completion of a prompt: desirable or not."""

    prompt: Prompt
    completion: Completion
    desirable: bool
    unrelated: Completion | None = None
    """A completion that was written for another prompt: the baseline of KTO measures it on this one."""


def rated_field(field: str, label: str) -> Form:
    """Make the form of a completion in a field, and its label."""

    def read(row: Mapping[str, Any], survey: Survey) -> Answers:
        return Answers([read_answer(row[field], field)], [field], is_good(row, label, survey))

    name = label if field == "messages" else f"{field} and {label}"
    return Form(name, (field, label), read)


def two_sides(better: str, worse: str) -> Form:
    """Make the form of a pair, which is two rated completions: one up, one down."""
    fields = (better, worse)
    return Form(
        f"{better} and {worse}, rated up and down",
        fields,
        lambda row, _: Answers(read_answers([row[field] for field in fields], fields), fields),
    )


def make_rated(prompt: Prompt, completions: Sequence[Completion], good: bool | None) -> list[RatedCompletion]:
    """Make one rated completion, or of a pair two.

    Raises:
        RowError: the two are equal.
    """
    if good is not None:
        return [RatedCompletion(prompt, completions[0], good)]
    if completions[0] == completions[1]:
        raise RowError("rejected", "is equal to chosen, so one of the two ratings is wrong; remove the row")
    return [RatedCompletion(prompt, one, up) for one, up in zip(completions, (True, False), strict=True)]


FORMS = Forms(
    [
        *(rated_field(field, label) for label in LABELS for field in (*COMPLETIONS, "messages")),
        two_sides("chosen", "rejected"),
    ],
    make_rated,
    labels=LABELS,
)
"""Every form of a rated completion."""


def with_unrelated(examples: Iterable[RatedCompletion]) -> Iterator[RatedCompletion]:
    """Give each example the completion of the next one that has another prompt and another completion.

    After the last example comes the first. Only examples that still wait for theirs are held.

    Args:
        examples: iterated once, and once more as far as the last ones need it.

    Raises:
        DataError: for some example, no other one has both another prompt and another completion.
    """
    waiting: deque[RatedCompletion] = deque()
    done = 0
    for example in examples:
        for ready in give(waiting, example):
            done += 1
            yield ready
        waiting.append(example)
    for example in examples:
        if not waiting:
            return
        for ready in give(waiting, example):
            done += 1
            yield ready
    if waiting:
        raise no_unrelated(waiting[0], examples, done + 1)


def give(waiting: deque[RatedCompletion], other: RatedCompletion) -> Iterator[RatedCompletion]:
    """Give a completion to those that wait for one and can take it; yield those in front that have theirs."""
    for index, example in enumerate(waiting):
        fits = example.prompt != other.prompt and example.completion != other.completion
        if example.unrelated is None and fits:
            waiting[index] = replace(example, unrelated=other.completion)
    while waiting and waiting[0].unrelated is not None:
        yield waiting.popleft()


def no_unrelated(example: RatedCompletion, examples: Iterable[RatedCompletion], number: int) -> DataError:
    """Say why an example finds no unrelated completion."""
    if all(other.prompt == example.prompt for other in examples):
        return DataError(
            "all rows have the same prompt, so KTO's baseline finds no completion of another one; "
            "add other prompts, or take --set baseline=batch"
        )
    return DataError(
        f"all completions of other prompts are equal to that of example {number}, so KTO finds no "
        "unrelated one for its baseline; add other rows, or take --set baseline=batch"
    )
