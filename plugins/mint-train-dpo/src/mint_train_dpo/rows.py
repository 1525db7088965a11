"""The row of a preference loss, a prompt with a chosen and a rejected completion, in all its forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mint_train.plugin import (
    Answers,
    Completion,
    Form,
    Forms,
    Prompt,
    RowError,
    Survey,
    are_messages,
    compared_answers,
    from_json,
    graded_lists,
    kind,
    number,
    read_answers,
)

ASSISTANT = "assistant"
SIDE_NAMES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
    ("preferred", "dispreferred"),
    ("accepted", "rejected"),
)
"""What data sets call the better and the worse completion."""
SCORES = [
    (stem.format("chosen"), stem.format("rejected"))
    for kind in ("score", "rating", "avg_rating", "reward")
    for stem in (f"{{}}_{kind}", f"{kind}_{{}}", f"{{}}-{kind}")
]
"""What they call the scores of the two, of which the better completion has the higher."""
RESERVED = (
    "p_chosen",
    "tie",
    "margin",
    "chosen_token_weights",
    "rejected_token_weights",
    "chosen_spans",
    "rejected_spans",
    "gold",
)
"""What further losses on pairs read beside a pair. Scores are not among them: most data have some."""


@dataclass(frozen=True)
class PreferencePair:
    """One comparison: for this prompt, `chosen` was preferred to `rejected`."""

    prompt: Prompt
    chosen: Completion
    rejected: Completion


def make_pair(prompt: Prompt, completions: Sequence[Completion], _: object = None) -> PreferencePair:
    """Put a prompt and its two completions together, the better one first.

    Raises:
        RowError: they are equal.
    """
    chosen, rejected = completions
    if chosen == rejected:
        raise RowError("rejected", "is equal to chosen, so there is nothing to prefer; remove the row")
    return PreferencePair(prompt, chosen, rejected)


def named_sides(better: str, worse: str) -> Form:
    """Make the form of two columns whose names say which completion is better."""
    fields = (better, worse)

    def read(row: Mapping[str, Any], _: Survey) -> Answers:
        refuse_contradiction(row)
        return Answers(read_answers([row[field] for field in fields], fields), fields)

    checks = tuple(name for names in SCORES for name in names)
    return Form(f"{better} and {worse}", fields, read, checks=checks)


def refuse_contradiction(row: Mapping[str, Any]) -> None:
    """Refuse a row whose scores call the rejected completion the better one.

    Raises:
        RowError: naming both scores, and the flag that leaves them out.
    """
    for names in SCORES:
        if names[0] in row and names[1] in row:
            try:
                chosen, rejected = (number(row[name], name) for name in names)
            except RowError:  # no scores, which nothing is read of
                continue
            if chosen < rejected:
                problem = (
                    f"is {chosen:g}, below {names[1]}, {rejected:g}: they call the rejected answer better"
                )
                advice = f"leave the scores out with --columns {names[0]}=,{names[1]}="
                raise RowError(names[0], f"{problem}; correct the row, or {advice}")


def read_outputs(row: Mapping[str, Any], _: Survey) -> Answers:
    """Read `output` as two answers, the better one first.

    Raises:
        RowError: it is something else.
    """
    value = from_json(row["output"], "output")
    if not isinstance(value, list) or len(value) != 2:
        found = f"{len(value)}" if isinstance(value, list) else kind(value)
        raise RowError("output", f"must be a list of two completions, the better one first, not {found}")
    fields = ("output[0]", "output[1]")
    return Answers(read_answers(value, fields), fields)


def read_corrected(row: Mapping[str, Any], _: Survey) -> Answers:
    """Read ms-swift's `messages`, whose answer is the chosen one, and the rejected answer beside them.

    Raises:
        RowError: the conversation does not end with the assistant.
    """
    fields = ("messages", "rejected_response")
    better, worse = read_answers([row[field] for field in fields], fields)
    if not isinstance(better, list) or better[-1]["role"] != ASSISTANT:
        raise RowError("messages", "must end with the assistant's answer, which is the chosen one")
    answer = [{"role": ASSISTANT, "content": worse}] if isinstance(worse, str) else worse
    return Answers([better, [*better[:-1], *answer]], fields)


FORMS = Forms(
    [
        *(named_sides(*names) for names in SIDE_NAMES),
        Form(
            "two outputs, the better first",
            ("output",),
            read_outputs,
            lambda row: isinstance(value := from_json(row["output"]), list) and not are_graded(value),
        ),
        Form(
            "messages and a rejected response",
            ("messages", "rejected_response"),
            read_corrected,
            lambda row: are_messages(from_json(row["messages"])),
        ),
        *compared_answers(),
        *graded_lists(ends=True),
    ],
    make_pair,
    reserved=RESERVED,
)
"""Every form of a pair."""


def are_graded(items: list[object]) -> bool:
    """Return whether items are objects that bring a grade with them, and not completions alone."""
    return any(isinstance(item, Mapping) and {"rank", "score", "rating"} & item.keys() for item in items)
