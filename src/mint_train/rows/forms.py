"""The forms that rows come in: recognised from their fields, read, and named to the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.conversations import Completion, Prompt, says_nothing_new
from mint_train.rows.form import Answers, Form
from mint_train.rows.grades import RANK_COLUMNS, SCORE_COLUMNS
from mint_train.rows.meaning import unread_columns
from mint_train.rows.prompts import BESIDE, PROMPTS, REPLY_TREES, TURN_LISTS, with_beside
from mint_train.rows.same_answers import same_answers, value_of
from mint_train.rows.shared_beginnings import (
    as_answer,
    interleaved,
    is_conversation,
    share_beginning,
    split_conversations,
)
from mint_train.rows.suggestions import ambiguous, begins_with_assistant, no_answers, no_prompt, no_verdict
from mint_train.rows.verdicts import VERDICTS, NoVerdictError, Survey

GRADES = frozenset({*RANK_COLUMNS, *SCORE_COLUMNS})
NOTHING = Survey()


@dataclass(frozen=True)
class Reading:
    """What was read of a row."""

    examples: Sequence[Any]
    """One, or several where a loss makes several of one row."""
    form: str | None
    """As the user reads it: "text prompts with chosen and rejected"."""
    unread: tuple[str, ...] = ()
    """Columns that nothing was read of, and that change nothing."""
    weight: float = 1.0
    """What each of the examples counts in its batch's mean."""

    @property
    def example(self) -> Any:
        """The one example, or the first."""
        return self.examples[0]


class Forms:
    """The forms of rows that a loss reads: those of its answers, each with any form of a prompt."""

    def __init__(
        self,
        answers: Sequence[Form],
        make: Callable[[Prompt, list[Completion], Any], Any],
        prompts: Sequence[Form] = PROMPTS,
        labels: Sequence[str] = (),
        reserved: Sequence[str] = (),
    ) -> None:
        """Take the forms.

        Args:
            answers: forms whose `read(row, survey)` returns `Answers`; where two suit and say the same, the
                first is taken.
            make: makes the example, or a list of several, of a prompt, completions and the answers' value.
            prompts: forms whose `read(row)` returns a prompt.
            labels: columns beside `VERDICTS` whose meaning only all their values show.
            reserved: columns that other losses read of such rows, and that this one would drop: they are
                refused, unless a form or `extended` forms read them.

        Raises:
            TypeError: a form is none, or its fields are not texts.
        """
        for form in (*answers, *prompts):
            if not isinstance(form, Form):
                raise TypeError(f"a form is of the type {type(form).__name__}, not Form")
            if not all(isinstance(field, str) for field in (*form.needs, *form.checks)):
                raise TypeError("the fields that a form needs or checks are texts")
        self.answers = tuple(answers)
        self.prompts = tuple(prompts)
        self.surveyed = frozenset({*VERDICTS, *labels})
        self.reserved = frozenset(reserved)
        self._make = make
        self._answers_with = lru_cache(maxsize=256)(lambda present: having(present, self.answers))
        self._prompts_with = lru_cache(maxsize=256)(lambda present: having(present, self.prompts))

    @property
    def checked(self) -> frozenset[str]:
        """Fields that what was read is compared with."""
        return frozenset(field for form in self.answers for field in form.checks)

    @property
    def fields(self) -> frozenset[str]:
        """The fields that a row in one of the forms may have; `extended` forms may read others too."""
        needed = (field for form in (*self.answers, *self.prompts) for field in form.needs)
        return frozenset(needed) | self.surveyed | self.reserved | self.checked | GRADES | set(BESIDE)

    def read(self, row: Mapping[str, Any], survey: Survey = NOTHING) -> Reading:
        """Read a row in the one form that it suits; an empty or null field counts as absent.

        Raises:
            RowError: it suits none, or two that say different things; a field is wrong, or would be dropped.
            ColumnRefusedError: a column of verdicts has no one reading.
        """
        present = frozenset([name for name, value in row.items() if value is not None and value != ""])
        form, answers, alike = self._find_answers(row, present, survey)
        read = {*form.needs, *answers.read}
        if answers.completions and self._is_whole(answers, row, present):
            name, prompt, completions = split_conversations(form, answers, row, read)
        else:
            name, prompt, completions = self._with_prompt(form, answers, row, present, read)
        unread = []
        if len(row) > len(read):
            unread = unread_columns(row, frozenset(read), (prompt, completions), self.reserved - alike)
        examples = self._examples(prompt, completions, answers.value)
        for other in answers.further:
            _, prompt, completions = split_conversations(form, other, row, set(form.needs))
            examples += self._examples(prompt, completions, other.value)
        return Reading(examples, name, tuple(unread))

    def _examples(self, prompt: Prompt, completions: list[Completion], value: Any) -> list[Any]:
        """Make the examples of a prompt and its answers: one, or several where the loss makes a list."""
        made = self._make(prompt, completions, value)
        return list(made) if isinstance(made, list) else [made]

    def _find_answers(
        self, row: Mapping[str, Any], present: frozenset[str], survey: Survey
    ) -> tuple[Form, Answers, frozenset[str]]:
        """Find the one form of the answers, read them, and name the columns that hold the same answers."""
        suiting = [form for form in self._answers_with(present) if form.suits(row)]
        if len(suiting) > 1:
            suiting = [form for form in suiting if not self._is_prompt(form, row, present)]
        if not suiting:
            of_prompts = {field for prompt in self.prompts for field in prompt.needs}
            forms = [one for one in self.answers if not of_prompts >= set(one.needs)]
            raise no_answers(row, present, forms, self.prompts)
        first = suiting[0]
        try:
            answers = first.read(row, survey)
        except NoVerdictError as error:
            raise no_verdict(row, present, error, first, self.prompts) from None
        alike: set[str] = set()
        for other in suiting[1:]:
            if set(other.needs) <= {*first.needs, *answers.read}:
                continue
            if not same_answers(answers, other, row, survey):
                one, two = (self._named(either, row, present) for either in (first, other))
                raise ambiguous(one, two, first, other)
            alike.update(other.needs)
        return first, answers, frozenset(alike)

    def _is_prompt(self, form: Form, row: Mapping[str, Any], present: frozenset[str]) -> bool:
        """Return whether the columns of a form of answers hold a prompt, and nothing that answers it."""
        for prompt in self._prompts_with(present):
            if set(prompt.needs) <= set(form.needs) and prompt is not REPLY_TREES and prompt.suits(row):
                with suppress(RowError):
                    prompt.read(row)
                    return True
        return False

    def _is_whole(self, answers: Answers, row: Mapping[str, Any], present: frozenset[str]) -> bool:
        """Return whether answers are whole conversations, with all that the row's prompt says in them."""
        first = answers.completions[0]
        if is_conversation(first) or not answers.every_turn:
            return is_conversation(first)
        if isinstance(first, str) or all(message["role"] != "user" for message in first):
            return False
        prompts = [prompt for prompt in self._prompts_with(present) if prompt.suits(row)]
        return all(says_nothing_new(value_of(prompt, row), first) for prompt in prompts)

    def _named(self, form: Form, row: Mapping[str, Any], present: frozenset[str]) -> str:
        """Name a form of answers with the prompt that a row has, for a refusal."""
        prompts = [prompt for prompt in self._prompts_with(present) if prompt.suits(row)]
        return f"{prompts[0].name} with {form.name}" if prompts else form.name

    def _with_prompt(
        self, form: Form, answers: Answers, row: Mapping[str, Any], present: frozenset[str], read: set[str]
    ) -> tuple[str, Prompt, list[Completion]]:
        """Read the prompt of single answers, and move what all of them begin with into it."""
        suiting = [prompt for prompt in self._prompts_with(present) if prompt.suits(row)]
        suiting = [one for one in suiting if one is REPLY_TREES or not set(one.needs) & read]
        if not suiting and answers.completions and isinstance(answers.completions[0], list):
            raise begins_with_assistant(row, self.prompts, answers.fields[0], read)
        if not suiting:
            raise no_prompt(row, self.prompts, read)
        found = suiting[0]
        if found is TURN_LISTS:
            read.update(found.needs)
            return f"{found.name} with {form.name}", *interleaved(row["prompt"], answers)
        prompt = found.read(row)
        for other in suiting[1:]:
            if not says_nothing_new(value_of(other, row), prompt):
                if not says_nothing_new(value_of(found, row), other.read(row)):
                    one, two = (f"{either.name} with {form.name}" for either in (found, other))
                    raise ambiguous(one, two, found, other)
                found, prompt = other, other.read(row)
        for candidate in suiting:
            read.update(candidate.needs)
        # token ids are a prompt too, and nothing stands beside them
        if not (isinstance(prompt, list) and prompt and isinstance(prompt[0], int)):
            prompt = with_beside(row, prompt, read)
        completions = [
            as_answer(answer, name) for answer, name in zip(answers.completions, answers.fields, strict=True)
        ]
        if len(completions) > 1 and not any(isinstance(completion, str) for completion in completions):
            prompt, completions = share_beginning(prompt, completions, answers.fields)
        return f"{found.name} with {form.name}", prompt, completions

    def extended(
        self, read: Callable[[Mapping[str, Any]], tuple[Any, Sequence[str]]], make: Callable[[Any, Any], Any]
    ) -> Forms:
        """Return forms of the same rows that read more columns of each.

        Args:
            read: reads what else the loss wants of a row, and names the columns that it read.
            make: makes the example of one of these forms' own and of what was read.
        """
        return ExtendedForms(self, read, make)


class ExtendedForms(Forms):
    """Forms that read more columns than others."""

    def __init__(
        self,
        base: Forms,
        read: Callable[[Mapping[str, Any]], tuple[Any, Sequence[str]]],
        make: Callable[[Any, Any], Any],
    ) -> None:
        super().__init__(base.answers, lambda *_: [], base.prompts)
        self.surveyed, self.reserved = base.surveyed, base.reserved
        self._base = base
        self._read_more = read
        self._make_more = make

    def read(self, row: Mapping[str, Any], survey: Survey = NOTHING) -> Reading:
        """Read a row as the other forms do, and the further columns of it."""
        more, columns = self._read_more(row)
        # the base would refuse a reserved column, which these forms have read
        left = {name: value for name, value in row.items() if name not in columns}
        reading = self._base.read(left if self.reserved.intersection(columns) else row, survey)
        examples = [self._make_more(example, more) for example in reading.examples]
        return Reading(examples, reading.form, tuple(name for name in reading.unread if name not in columns))


def combine(prompts: Sequence[Form], answers: Sequence[Form], make: Callable[[Any, Any], Any]) -> Forms:
    """Return the forms of rows whose answers a loss reads whole, each with any form of a prompt.

    Args:
        prompts: forms of prompts, such as `PROMPTS`.
        answers: forms whose `read(row)` returns what the loss wants to know of the answers.
        make: makes the example of a prompt and of what was read.
    """

    def whole(form: Form) -> Form:
        return Form(form.name, form.needs, lambda row, _: Answers(value=form.read(row)), form.suits)

    return Forms([whole(form) for form in answers], lambda prompt, _, value: make(prompt, value), prompts)


def having(present: frozenset[str], forms: Sequence[Form]) -> tuple[Form, ...]:
    """Return the forms whose fields are all present."""
    return tuple(form for form in forms if present.issuperset(form.needs))
