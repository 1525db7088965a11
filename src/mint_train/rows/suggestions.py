"""What is missing from a row, said with flags that are ready to paste."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.columns import flag
from mint_train.rows.form import Form
from mint_train.rows.messages import are_messages
from mint_train.rows.row import kind
from mint_train.rows.single_answers import ONE_ANSWER
from mint_train.rows.values import from_json
from mint_train.rows.whole_conversations import answered, whole_conversations

PROMPT_WORDS = re.compile(
    r"prompt|question|query|instruction|post|input|problem|user|full_text|context|dialog|title", re.I
)
SEVERAL = "this loss needs several answers to a prompt"
OTHERS = "; mint-train losses lists those for single completions"
SHORTEST = 2
DEEPEST = 2


def ambiguous(one_name: str, other_name: str, one: Form, other: Form) -> RowError:
    """Show the two readings of a row, and which columns decide between them."""
    first = next((field for field in one.needs if field not in other.needs), one.needs[0])
    second = next((field for field in other.needs if field not in one.needs), other.needs[0])
    return RowError(
        first,
        f'can be read in two ways: "{one_name}" or "{other_name}"; leave one column out, with '
        f"--columns {second}= for the first or --columns {first}= for the second",
    )


def absent(row: Mapping[str, Any], field: str, columns: Mapping[str, str]) -> RowError:
    """Say that a field is missing, null or empty, and how to name it and the others that are missing."""
    if field not in row:
        has = ", ".join(map(repr, row)) or "no fields"
        ones = "ones" if len(columns) > 1 else "one"
        return RowError(field, f"missing; the row has {has}; name the right {ones} with {flag(columns)}")
    return RowError(field, "must be given, not null" if row[field] is None else "is empty")


def no_answers(
    row: Mapping[str, Any], present: frozenset[str], forms: Sequence[Form], prompts: Sequence[Form]
) -> RowError:
    """Say which fields of the nearest form of answers are missing, and with them the prompt."""
    nearest = max(forms, key=lambda form: (len(present & set(form.needs)), present.issuperset(form.needs)))
    missing = [field for field in nearest.needs if field not in present]
    reads_one = any(ONE_ANSWER[0] in form.needs for form in forms)
    if not missing:
        return RowError(nearest.needs[0], unsuited(from_json(row[nearest.needs[0]]), reads_one))
    columns = {field: likely_column(row, field, nearest.needs) for field in missing}
    columns = with_prompt(row, present, nearest, prompts, columns)
    error = absent(row, missing[0], columns)
    if missing[0] in row:
        return error
    alone = [name for name in ONE_ANSWER if name in present]
    if len(missing) == len(nearest.needs) > 1 and alone and not reads_one:
        return RowError(error.field, f'{error.problem}; {SEVERAL}, and "{alone[0]}" is one{OTHERS}')
    figures = [name for name, value in row.items() if isinstance(value, int | float) and value not in (0, 1)]
    if len(missing) == 1 < len(nearest.needs) and figures and columns[missing[0]] == "COLUMN":
        rating = flag({missing[0]: f"{figures[0]}>=NUMBER"})
        return RowError(error.field, f"{error.problem}, or a rating and from where on it is good: {rating}")
    return error


def unsuited(found: object, reads_one: bool) -> str:
    """Say why what a column of answers holds is none of them."""
    if isinstance(found, list):
        return "must be one answer, not a list"
    problem = f"must be a list of answers, not {kind(found)}"
    return problem if reads_one else f"{problem}: {SEVERAL}{OTHERS}"


def no_verdict(
    row: Mapping[str, Any], present: frozenset[str], error: RowError, answers: Form, prompts: Sequence[Form]
) -> RowError:
    """Say how to name the column that prefers one of two answers, and the prompt if that is missing too."""
    columns = with_prompt(row, present, answers, prompts, {"winner": "COLUMN"})
    others = [
        name
        for name, value in row.items()
        if name not in answers.needs and name not in columns.values() and isinstance(value, int | float | str)
    ]
    has = f" (the row has {', '.join(others[-4:])})" if others else ""
    named = "its column" if len(columns) == 1 else "its column, and that of the prompt,"
    return RowError(error.field, f"{error.problem}; name {named} with {flag(columns)}{has}")


def with_prompt(
    row: Mapping[str, Any],
    present: frozenset[str],
    answers: Form,
    prompts: Sequence[Form],
    columns: dict[str, str],
) -> dict[str, str]:
    """Return what `--columns` is to name, the prompt first where the row has none."""
    prompt = prompts[0].needs[0]
    has_one = any(present.issuperset(form.needs) and form.suits(row) for form in prompts)
    if has_one or prompt in row or whole_conversations(row):
        return columns
    likely = likely_prompt(row, {*answers.needs, *columns.values()}) or ""
    return {prompt: likely if PROMPT_WORDS.search(likely) else "COLUMN", **columns}


def likely_column(row: Mapping[str, Any], field: str, taken: Sequence[str]) -> str:
    """Return the column whose name is the most like a field's, or COLUMN where none is."""
    like = [name for name in row if name not in taken and (field in name or name in field) and row[name]]
    return like[0] if like else "COLUMN"


def no_prompt(row: Mapping[str, Any], forms: Sequence[Form], read: Set[str]) -> RowError:
    """Say that the prompt is missing, and which columns may be one."""
    field = forms[0].needs[0]
    return absent(row, field, {field: likely_prompt(row, read) or "COLUMN"})


def begins_with_assistant(
    row: Mapping[str, Any], forms: Sequence[Form], answer: str, read: Set[str]
) -> RowError:
    """Say that a conversation has no turn of the user, and which column may hold one."""
    field = forms[0].needs[0]
    if (column := likely_prompt(row, read)) is not None:
        advice = f"name the column of its prompt with {flag({field: column})}"
    else:
        advice = f"put the user's turn before it or into a column {field}"
    problem = "begins with the assistant, and nothing says what it answers"
    return RowError(answer, f"{problem}; {advice}, or leave such rows out with --on-bad-row skip")


def likely_prompt(row: Mapping[str, Any], read: Set[str]) -> str | None:
    """Return the column, or the path into one, that is the most likely to hold the prompt."""
    candidates = sorted(
        (
            (path, value)
            for path, value in texts_with_paths(row)
            if path.partition(".")[0] not in read and answered(value) is None
        ),
        key=lambda one: (not PROMPT_WORDS.search(one[0]), -len(str(one[1]))),
    )
    return candidates[0][0] if candidates else None


def texts_with_paths(
    row: Mapping[str, Any], before: str = "", depth: int = 0
) -> Iterator[tuple[str, object]]:
    """Yield the texts and conversations of a row with their paths, those of its objects included."""
    for name, value in row.items():
        path = f"{before}{name}"
        if (isinstance(value, str) and len(value) > SHORTEST) or are_messages(from_json(value)):
            yield path, value
        elif isinstance(value, Mapping) and depth < DEEPEST:
            yield from texts_with_paths(value, f"{path}.", depth + 1)
