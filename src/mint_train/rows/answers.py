"""The forms that graded answers come in: two with a verdict, and lists with ranks, scores or a choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.columns import value_text
from mint_train.rows.conversations import as_messages
from mint_train.rows.form import Answers, Form
from mint_train.rows.grades import RANK_KEYS, SCORE_KEYS, find_grades
from mint_train.rows.messages import ChatMessage, are_messages, chat_message, chat_messages, is_message
from mint_train.rows.prompts import closed, dialogue, is_dialogue
from mint_train.rows.row import kind
from mint_train.rows.trees import ComparedTurn, compared_turns
from mint_train.rows.values import as_number, from_json, given, number, text
from mint_train.rows.verdicts import VERDICTS, NoVerdictError, Survey, better_of

STEMS = (
    "completion", "response", "answer", "output", "conversation", "conv", "summary", "human_ref", "candidate",
    "generation", "reply", "text", "solution",
)  # fmt: skip
SIDES = (("a", "b"), ("A", "B"), ("0", "1"), ("1", "2"))
SCORE_STEMS = ("score", "reward", "rating")
LISTS = ("completions", "responses", "answers", "outputs", "output", "generations", "candidates", "summaries")
TEXT_KEYS = (
    "response",
    "text",
    "answer",
    "completion",
    "content",
    "output",
    "generation",
    "summary",
    "message",
)


def read_answer(value: object, field: str) -> str | list[ChatMessage]:
    """Read one answer, or a whole conversation: text, a message, a list of them, or these as JSON text.

    Raises:
        RowError: it is something else, or empty.
    """
    found = from_json(value)
    if is_message(found):
        return [chat_message(from_json(value, field), field)]
    if isinstance(found, list) and (are_messages(found) or not isinstance(value, str)):
        return chat_messages(from_json(value, field), field)
    return text(value, field) if isinstance(value, str) else [chat_message(value, field)]


def read_answers(values: Sequence[object], fields: Sequence[str]) -> list[str | list[ChatMessage]]:
    """Read answers that are in one form; where all are dialogues of Anthropic's HH form, as those."""
    if all(map(is_dialogue, values)):
        return [
            closed(dialogue(str(value), field), field) for value, field in zip(values, fields, strict=True)
        ]
    return [read_answer(value, field) for value, field in zip(values, fields, strict=True)]


def compared_answers() -> list[Form]:
    """Return the forms of two answers and a verdict: `response_a`, `response_b`, `winner`."""
    forms = [
        compared(f"{stem}{joint}{sides[0]}", f"{stem}{joint}{sides[1]}", sides)
        for stem in STEMS
        for joint in ("_", "")
        for sides in SIDES
    ]
    return [*forms, better_first()]


def better_first() -> Form:
    """Return the form of two columns of which the first is always better."""
    fields = ("response_j", "response_k")
    return Form(
        "response_j better than response_k",
        fields,
        lambda row, _: Answers(read_answers([row[field] for field in fields], fields), fields, [1.0, 0.0]),
    )


def compared(first: str, second: str, sides: tuple[str, str]) -> Form:
    """Make the form of two answers and what says which is better."""
    fields = (first, second)

    def read(row: Mapping[str, Any], survey: Survey) -> Answers:
        better, read = find_better(row, fields, sides, survey)
        answers = read_answers([up_to_turn(row[field], row) for field in fields], fields)
        order = (better, 1 - better)
        read += [name for name in ("turn",) if are_messages(row[first]) and name in row]
        return Answers([answers[n] for n in order], [fields[n] for n in order], [1.0, 0.0], frozenset(read))

    return Form(f"{first} and {second} compared", fields, read)


def up_to_turn(value: object, row: Mapping[str, Any]) -> object:
    """Return a conversation up to the turn that was judged, where a `turn` counts from 1 which it was."""
    turn = row.get("turn")
    if not isinstance(turn, int) or turn < 1 or not are_messages(value) or not isinstance(value, list):
        return value
    answers = [index for index, message in enumerate(value) if message.get("role") == "assistant"]
    return value[: answers[turn - 1] + 1] if turn <= len(answers) else value


def find_better(
    row: Mapping[str, Any], fields: tuple[str, str], sides: tuple[str, str], survey: Survey
) -> tuple[int, list[str]]:
    """Return which of two answers is better, 0 or 1, and the columns that say so.

    Raises:
        RowError: no column says so, several do, or neither is better.
        ColumnRefusedError: the verdict's column has no one reading.
    """
    found = [name for name in VERDICTS if row.get(name) not in (None, "")]
    if len(found) > 1:
        choices = [(name, ",".join(f"{other}=" for other in found if other != name)) for name in found]
        advice = ", or ".join(f"to read {name}, give --columns {others}" for name, others in choices)
        raise RowError(found[0], f"is not alone: the row has {', '.join(found)}; {advice}")
    if found:
        better = better_of(row, found[0], fields, sides, survey)
        read = [*found, *scores_of_sides(row, sides)]
    else:
        better, read = by_figures(row, fields, sides)
    if better is None:
        column = read[0]
        raise RowError(
            column,
            f'is "{value_text(row[column])}": a tie prefers neither; --on-bad-row skip leaves such rows out',
        )
    return better, read


def scores_of_sides(row: Mapping[str, Any], sides: tuple[str, str]) -> list[str]:
    """Return the columns of two scores, where a row has them."""
    for stem in SCORE_STEMS:
        names = [f"{stem}_{side}" for side in sides]
        if all(as_number(row.get(name)) is not None for name in names):
            return names
    return []


def by_figures(
    row: Mapping[str, Any], fields: tuple[str, str], sides: tuple[str, str]
) -> tuple[int | None, list[str]]:
    """Return which answer is better by columns such as `winner_model_a`, or by scores, and those columns.

    Raises:
        NoVerdictError: the row has neither.
    """
    for stem in ("winner_model", "winner"):
        names = [f"{stem}_{side}" for side in sides]
        if all(as_number(row.get(name)) is not None for name in names):
            ties = [name for name in ("winner_tie", "winner_tie (bothbad)") if name in row]
            first_won, second_won = (as_number(row[name]) == 1 for name in names)
            if first_won == second_won:
                return None, [*ties, *names]  # a refusal names the first column, which says that it is a tie
            return int(second_won), [*names, *ties]
    if names := scores_of_sides(row, sides):
        first, second = (number(row[name], name) for name in names)
        return (None if first == second else int(second > first)), names
    problem = f"missing; nothing says which of {fields[0]} and {fields[1]} is better"
    raise NoVerdictError(VERDICTS[0], problem)


def graded_lists(ends: bool = False, implicit: Sequence[str] = ()) -> list[Form]:
    """Return the forms of a list of answers with grades, and of a tree of replies with ranks.

    Args:
        ends: read the best and the worst alone.
        implicit: lists whose texts stand best first where nothing grades them.
    """
    return [*(graded_list(field, ends, field in implicit) for field in LISTS), tree_of_replies(ends)]


def graded_list(field: str, ends: bool, implicit: bool) -> Form:
    """Make the form of answers in one list."""

    def read(row: Mapping[str, Any], survey: Survey) -> Answers:
        items = from_json(row[field], field)
        if not isinstance(items, list):
            raise RowError(field, f"must be a list of completions, not {kind(items)}")
        if len(items) < 2:
            raise RowError(field, f"holds {len(items)}; a ranking needs two or more")
        grades, columns = find_grades(row, field, items, survey, implicit)
        return in_order(items, grades, field, ends, columns)

    name = f"the best and the worst of {field}" if ends else f"ranked {field}"
    return Form(name, (field,), read, lambda row: isinstance(from_json(row[field]), list))


def tree_of_replies(ends: bool) -> Form:
    """Make the form of a prompt that holds its replies, each with a rank, as OpenAssistant has it.

    Each deeper turn of the user with two or more ranked replies is a group of its own.
    """

    def read(row: Mapping[str, Any], survey: Survey) -> Answers:
        items = row["prompt"]["replies"]
        turns = compared_turns(row["prompt"], (*RANK_KEYS, *SCORE_KEYS))
        further = [answers_of(turn, ends, survey) for turn in turns]
        if len(items) < 2 and further:
            return replace(further[0], further=further[1:])
        if len(items) < 2:
            raise RowError("prompt.replies", f"holds {len(items)}; a ranking needs two or more")
        grades, columns = find_grades({}, "prompt.replies", items, survey, implicit=False)
        return replace(in_order(items, grades, "prompt.replies", ends, columns), further=further)

    return Form(
        "the best and the worst reply" if ends else "ranked replies",
        ("prompt",),
        read,
        lambda row: isinstance(row["prompt"], Mapping) and isinstance(row["prompt"].get("replies"), list),
    )


def answers_of(turn: ComparedTurn, ends: bool, survey: Survey) -> Answers:
    """Return the answers to a deeper turn, each with the conversation above it, the best first."""
    grades, columns = find_grades({}, turn.field, turn.replies, survey, implicit=False)
    answers = in_order(turn.replies, grades, turn.field, ends, columns, turn.positions)
    return replace(answers, completions=[[*turn.above, *as_messages(one)] for one in answers.completions])


def in_order(
    items: Sequence[object],
    grades: Sequence[float],
    field: str,
    ends: bool,
    columns: frozenset[str],
    positions: Sequence[int] | None = None,
) -> Answers:
    """Return answers with the best first.

    Args:
        items: each one answer, or an object that holds it.
        grades: how good each is.
        field: where they stand in the row.
        ends: return the best and the worst alone.
        columns: columns that were read for their grades.
        positions: where each stands in the row's list; by default that is all of them.

    Raises:
        RowError: an answer is wrong, or the best and the worst are equally good.
    """
    order = sorted(range(len(items)), key=lambda index: -grades[index])
    if ends:
        order = [order[0], order[-1]]
        if grades[order[0]] == grades[order[1]]:
            raise RowError(
                field, "holds answers that are all equally good; leave such rows out with --on-bad-row skip"
            )
    positions = positions or range(len(items))
    names = [f"{field}[{positions[index]}]" for index in order]
    values = [text_of_item(items[index], name) for index, name in zip(order, names, strict=True)]
    return Answers(read_answers(values, names), names, [grades[index] for index in order], columns)


def text_of_item(item: object, field: str) -> object:
    """Return what is the answer in an item of a list.

    Raises:
        RowError: an object has none of the fields of an answer.
    """
    if isinstance(item, Mapping) and not is_message(item):
        key = next((key for key in TEXT_KEYS if given(item, key)), None)
        if key is None:
            raise RowError(field, f"has none of {', '.join(TEXT_KEYS)}; it has {', '.join(map(repr, item))}")
        return item[key]
    if isinstance(item, Mapping) and "text" in item and "content" not in item:
        return item["text"]
    return item
