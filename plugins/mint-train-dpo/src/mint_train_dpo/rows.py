"""The row of a preference loss, a prompt with a chosen and a rejected completion, in all its forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mint_train.plugin import (
    PROMPTS,
    ChatMessage,
    Form,
    Forms,
    RowError,
    chat_messages,
    combine,
    completion,
    dialogue,
    is_dialogue,
    kind,
    split_shared,
)

VERDICTS = ("label", "winner", "preference", "better", "choice")
TIES = ("tie", "both", "neither", "equal", "same", "draw", "none")
COMPARED = ("completion", "response", "answer", "output")
SIDES = (("a", "b"), ("0", "1"), ("1", "2"))


@dataclass(frozen=True)
class PreferencePair:
    """One comparison: for this prompt, `chosen` was preferred to `rejected`."""

    prompt: str | list[ChatMessage]
    chosen: str
    rejected: str


def are_conversations(row: Mapping[str, Any]) -> bool:
    """Return whether `chosen` and `rejected` are whole conversations rather than single answers."""
    return all(
        isinstance(row[side], Sequence) and not isinstance(row[side], str) and len(row[side]) > 1
        for side in ("chosen", "rejected")
    )


def are_dialogues(row: Mapping[str, Any]) -> bool:
    """Return whether `chosen` and `rejected` are whole dialogues of Anthropic's HH form."""
    return is_dialogue(row["chosen"]) and is_dialogue(row["rejected"])


def read_answers(row: Mapping[str, Any]) -> tuple[str, str]:
    """Read `chosen` and `rejected`, each one answer."""
    return completion(row["chosen"], "chosen"), completion(row["rejected"], "rejected")


def read_conversations(row: Mapping[str, Any]) -> PreferencePair:
    """Read `chosen` and `rejected` as whole conversations."""
    better, worse = (chat_messages(row[side], side) for side in ("chosen", "rejected"))
    prompt, *answers = split_shared(better, worse, ("chosen", "rejected"))
    return make_pair(prompt, answers)


def read_dialogues(row: Mapping[str, Any]) -> PreferencePair:
    """Read `chosen` and `rejected` as whole HH dialogues."""
    better, worse = (dialogue(row[side], side) for side in ("chosen", "rejected"))
    prompt, *answers = split_shared(better, worse, ("chosen", "rejected"))
    return make_pair(prompt, answers)


def read_outputs(row: Mapping[str, Any]) -> tuple[str, str]:
    """Read `output` as two answers, the better one first.

    Raises:
        RowError: it is something else.
    """
    value = row["output"]
    if not isinstance(value, list) or len(value) != 2:
        found = f"{len(value)}" if isinstance(value, list) else kind(value)
        raise RowError("output", f"must be a list of two completions, the better one first, not {found}")
    return completion(value[0], "output[0]"), completion(value[1], "output[1]")


def comparison(stem: str, sides: tuple[str, str]) -> Form:
    """Return the form of two completions and a verdict: `response_a`, `response_b`, `winner`."""
    fields = tuple(f"{stem}_{side}" for side in sides)

    def read(row: Mapping[str, Any]) -> tuple[str, str]:
        texts = [completion(row[field], field) for field in fields]
        better = read_verdict(row, fields, sides)
        return texts[better], texts[1 - better]

    return Form(f"{fields[0]} and {fields[1]} compared", fields, read)


def read_verdict(row: Mapping[str, Any], fields: tuple[str, ...], sides: tuple[str, str]) -> int:
    """Return which of two completions is better, 0 or 1.

    Raises:
        RowError: no field says so, more than one does, or it names neither completion.
    """
    found = [name for name in VERDICTS if row.get(name) not in (None, "")]
    if len(found) != 1:
        problem = "missing; the better completion is named by" if not found else "is ambiguous: the row has"
        raise RowError((found or VERDICTS)[0], f"{problem} {', '.join(found or VERDICTS)}")
    value = row[found[0]]
    # whole numbers come as 1.0 from a column that has nulls
    said = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip().lower()
    for index, (field, side) in enumerate(zip(fields, sides, strict=True)):
        if not isinstance(value, bool) and said in (side, field, f"model_{side}"):
            return index
    if said in TIES:
        raise RowError(found[0], f'is "{value}": a tie prefers neither; remove the row')
    raise RowError(found[0], f"is {value!r:.40}; it must name the better one: {sides[0]} or {sides[1]}")


def make_pair(prompt: str | list[ChatMessage], answers: Sequence[str]) -> PreferencePair:
    """Put a prompt and its two answers, the better one first, together.

    Raises:
        RowError: the answers are equal.
    """
    chosen, rejected = answers
    if chosen == rejected:
        raise RowError("rejected", "is equal to chosen, so there is nothing to prefer; remove the row")
    return PreferencePair(prompt, chosen, rejected)


CHOSEN_AND_REJECTED = Form(
    "chosen and rejected",
    ("chosen", "rejected"),
    read_answers,
    lambda row: not are_conversations(row) and not are_dialogues(row),
)
OUTPUTS = Form(
    "two outputs, the better first", ("output",), read_outputs, lambda row: isinstance(row["output"], list)
)
FORMS = Forms(
    (
        *combine(
            PROMPTS,
            [
                CHOSEN_AND_REJECTED,
                OUTPUTS,
                *(comparison(stem, sides) for stem in COMPARED for sides in SIDES),
            ],
            make_pair,
        ),
        Form(
            "chat messages, chosen and rejected sharing their prompt",
            ("chosen", "rejected"),
            read_conversations,
            are_conversations,
        ),
        Form(
            "Anthropic HH dialogues, chosen and rejected sharing their prompt",
            ("chosen", "rejected"),
            read_dialogues,
            are_dialogues,
        ),
    )
)
"""Every form of a pair."""
