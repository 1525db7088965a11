"""The prompts of a file, read as training reads those of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mint_train.errors import OptionError, Source
from mint_train.groups.examples import read_examples
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import NamedPlugin
from mint_train.plugins.hookspecs import hookimpl
from mint_train.rows.candidates import prompt_columns
from mint_train.rows.conversations import Prompt
from mint_train.rows.form import Answers, Form
from mint_train.rows.forms import NOTHING, Forms, Reading
from mint_train.rows.given_rows import given_rows
from mint_train.rows.meaning import plain_name
from mint_train.rows.mixture import open_items
from mint_train.rows.row import BadRow
from mint_train.rows.verdicts import VERDICTS, Survey
from mint_train.rows.whole_conversations import one_has_the_prompt, read_conversations, several_share_a_prompt
from mint_train.settings.data_items import DataItem, holds_rows, parse_data
from mint_train.settings.model import Settings
from mint_train.settings.wrong_values import described


@dataclass(frozen=True, slots=True)
class LocatedPrompt:
    """A prompt with the file and the line of its row."""

    prompt: Prompt
    row: Mapping[str, Any]
    source: Source
    weight: float


@dataclass(frozen=True, slots=True)
class Prompts:
    """The distinct prompts of a file, in its order."""

    rows: Sequence[LocatedPrompt]
    repeated: int
    """Rows whose prompt stands in an earlier one; they are left out."""
    bad_rows: Sequence[BadRow]
    sha256: str
    described: str
    """The file, its rows and their forms in one line."""


def verdicts_of(row: Mapping[str, Any]) -> frozenset[str]:
    """Return the columns that say which answer is better, and nothing of the prompt."""
    return frozenset(name for name in row if plain_name(name) in VERDICTS)


def read_whole(row: Mapping[str, Any], _: object) -> Answers:
    """Read whole conversations, to take the prompt from."""
    return read_conversations(row, verdicts_of(row))


class WholeRows(Forms):
    """Forms of rows of which a judge may read any column."""

    def read(self, row: Mapping[str, Any], survey: Survey = NOTHING) -> Reading:
        """Read a row; none of its columns counts as unread."""
        return replace(super().read(row, survey), unread=())


class PromptsAlone:
    """Reads prompts in every form that losses read, and nothing else of a row."""

    FORMS = WholeRows(
        [
            Form("answers", (), read_whole, several_share_a_prompt),
            Form("the prompt", (), read_whole, one_has_the_prompt),
            Form("their own columns", (), lambda row, _: Answers(value=row, read=verdicts_of(row))),
        ],
        lambda prompt, _, row: (prompt, row),
    )

    @hookimpl
    def row_forms(self) -> Forms:
        """Return the forms."""
        return self.FORMS


def as_rows(prompts: Any) -> Any:
    """Return prompts of a program as rows: each text of a list of texts is a user's turn.

    Raises:
        OptionError: they are neither rows nor texts.
    """
    if not holds_rows(prompts):
        raise OptionError(f"prompts is {described(prompts)}; give a file, rows, or texts")
    if isinstance(prompts, list | tuple) and prompts and all(isinstance(each, str) for each in prompts):
        return [{"prompt": each} for each in prompts]
    return prompts


def prompt_lines(prompts: Any) -> str:
    """Return prompts of a program, rows or texts, as JSON Lines.

    Raises:
        DataError: a row cannot be written down.
    """
    return b"".join(given_rows(as_rows(prompts), "prompts")).decode()


def read_prompts(data: Any, settings: Settings) -> Prompts:
    """Read the prompts of a file, or of any other source that `--data` takes.

    Args:
        data: the source, or the rows or texts of a program.
        settings: their `columns`, `on_bad_row` and `max_row_bytes` say how.

    Raises:
        DataError: the source or a row of it is wrong.
    """
    reader = Loss.of(NamedPlugin("prompts", PromptsAlone(), "mint-train"))
    items = (
        parse_data(str(data)) if isinstance(data, str | Path) else [DataItem("prompts", rows=as_rows(data))]
    )
    source = open_items(items, settings.max_row_bytes)
    examples = read_examples(source, reader, settings.columns, settings.on_bad_row)
    found: dict[str, LocatedPrompt] = {}
    for example in examples:
        prompt, row = example.value
        located = LocatedPrompt(prompt, row, example.source, example.weight)
        found.setdefault(repr(prompt_columns(prompt)), located)
    rows = list(found.values())
    return Prompts(
        rows, len(examples) - len(rows), examples.bad_rows, source.fingerprint(), examples.describe()
    )
