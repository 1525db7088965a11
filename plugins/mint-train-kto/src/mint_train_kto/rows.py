"""The row of a loss on rated completions: a prompt, one completion, and a thumb up or down."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mint_train.plugin import (
    PROMPTS,
    ChatMessage,
    DataError,
    Form,
    Forms,
    RowError,
    chat_messages,
    combine,
    completion,
    prompt,
    truth,
)


@dataclass(frozen=True)
class RatedCompletion:
    """One completion of a prompt: desirable or not."""

    prompt: str | list[ChatMessage]
    completion: str
    desirable: bool
    unrelated: str | None = None
    """A completion that was written for another prompt: the baseline of KTO measures it on this one."""


def read_messages(row: Mapping[str, Any]) -> RatedCompletion:
    """Read `messages`: a whole conversation whose last message is rated."""
    messages = chat_messages(row["messages"], "messages")
    if len(messages) == 1:
        raise RowError("messages", "holds one message; a prompt and the assistant's answer are needed")
    question, answer = prompt(messages[:-1], "messages"), completion(messages[-1:], "messages")
    return RatedCompletion(question, answer, truth(row["label"], "label"))


def rated_field(field: str) -> Form:
    """Return the form of a completion in a field, and its label."""
    return Form(
        f"{field} and label",
        (field, "label"),
        lambda row: (completion(row[field], field), truth(row["label"], "label")),
    )


FORMS = Forms(
    (
        *combine(
            PROMPTS,
            [rated_field("completion"), rated_field("output")],
            lambda question, rated: RatedCompletion(question, *rated),
        ),
        Form("chat messages with label, the last one rated", ("messages", "label"), read_messages),
    )
)
"""Every form of a rated completion."""


def with_unrelated(examples: Iterable[RatedCompletion]) -> Iterator[RatedCompletion]:
    """Give each example the completion of the next one that has another prompt and another completion.

    After the last example comes the first. Only examples that still wait for theirs are held in memory.

    Args:
        examples: iterated once, and once more as far as the last ones need it.

    Raises:
        DataError: there is no such example.
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
    """Give a completion to the waiting examples that can take it; yield those at the front that have one."""
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
