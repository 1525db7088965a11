"""The row of a loss on rated completions: a prompt, one completion, and a thumb up or down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mint_train.data.forms import Form, Forms, combine, recognise
from mint_train.data.messages import ChatMessage, chat_messages, completion, prompt, truth
from mint_train.data.prompts import PROMPTS
from mint_train.errors import DataError, RowError


@dataclass(frozen=True)
class RatedCompletion:
    """One completion of a prompt: desirable or not."""

    prompt: str | list[ChatMessage]
    completion: str
    desirable: bool
    unrelated: str | None = None
    """A completion that was written for another prompt: the baseline of KTO measures it on this one."""


def parse_rated(row: Mapping[str, Any]) -> RatedCompletion:
    """Read a rated completion from a row in one of `FORMS`.

    Raises:
        RowError: naming the field that is missing or wrong, or the two forms that the row suits.
    """
    rated: RatedCompletion = recognise(row, FORMS).read(row)
    return rated


def read_messages(row: Mapping[str, Any]) -> RatedCompletion:
    """Read `messages`: a whole conversation whose last message is rated."""
    messages = chat_messages(row["messages"], "messages")
    if len(messages) == 1:
        raise RowError("messages", "holds one message; a prompt and the assistant's answer are needed")
    question, answer = prompt(messages[:-1], "messages"), completion(messages[-1:], "messages")
    return RatedCompletion(question, answer, truth(row["label"], "label"))


def rated_field(field: str) -> Form:
    """Make the form of a completion in a field, and its label."""
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


def with_unrelated(examples: Sequence[RatedCompletion]) -> list[RatedCompletion]:
    """Give each example the completion of the next one that has another prompt and another completion.

    Raises:
        DataError: there is no such example.
    """
    count = len(examples)
    prompts = [repr(example.prompt) for example in examples]
    completions = [example.completion for example in examples]
    if len(set(prompts)) == 1:
        raise DataError(
            "all rows have the same prompt, so KTO's baseline finds no completion of another one; "
            "add other prompts, or take --set baseline=batch"
        )
    related = []
    for place, example in enumerate(examples):
        others = ((place + step) % count for step in range(1, count))
        fits = (
            other
            for other in others
            if prompts[other] != prompts[place] and completions[other] != completions[place]
        )
        if (chosen := next(fits, None)) is None:
            raise DataError(
                f"all completions of other prompts are equal to that of example {place + 1}, so KTO finds no "
                "unrelated one for its baseline; add other rows, or take --set baseline=batch"
            )
        related.append(replace(example, unrelated=completions[chosen]))
    return related
