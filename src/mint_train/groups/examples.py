"""From rows to examples: renamed, read in a form of the loss, counted; bad rows are named, never lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mint_train.errors import DataError, OptionError, RowError, Source
from mint_train.losses.loss import Loss
from mint_train.rows.columns import rename
from mint_train.rows.compression import MAX_ROW_BYTES
from mint_train.rows.forms import Reading
from mint_train.rows.known import known_columns
from mint_train.rows.readers import DataSource, changed, open_data
from mint_train.rows.row import BadRow, Example, Row
from mint_train.rows.row_weights import split_weight, weighted
from mint_train.rows.verdicts import ColumnRefusedError, Survey

OnBadRow = Literal["fail", "skip"]


@dataclass(frozen=True)
class Examples:
    """All examples of a source of rows. They are read anew in each iteration, and never held together."""

    data: DataSource
    loss: Loss
    columns: Mapping[str, str]
    on_bad_row: OnBadRow
    forms: Mapping[str, int]
    """How many good rows are in which form."""
    count: int
    bad_rows: tuple[BadRow, ...]
    """Rows that are left out, in order; without `on_bad_row="skip"` there are none."""
    survey: Survey = field(default_factory=Survey)
    """The values of the columns of verdicts and labels, over all rows."""
    unread: Mapping[str, int] = field(default_factory=dict)
    """Columns that nothing is read of, such as ids and sources, with how many rows have them."""
    positions: Set[int] | None = None
    """Which of the examples these are, counted from 0; without it, all."""

    def __len__(self) -> int:
        return self.count if self.positions is None else len(self.positions)

    def __iter__(self) -> Iterator[Example]:
        """Read the rows, one by one.

        Raises:
            DataError: the data has changed since it was first read.
        """
        position = bad = 0
        for source, reading in read_rows(self.data, self.loss, self.columns, self.survey):
            if isinstance(reading, BadRow):
                bad += 1
                continue
            for value in reading.examples:
                if self.positions is None or position in self.positions:
                    yield Example(value, source, reading.form, reading.weight)
                position += 1
        if position != self.count or bad != len(self.bad_rows):
            raise changed(str(self.data))

    def prompts(self) -> Iterator[object]:
        """Yield the prompt of each example, or None where the loss does not say what it is."""
        for example in replace(self, positions=None):
            yield getattr(example.value, "prompt", None)

    def only(self, positions: Set[int]) -> Examples:
        """Return the examples at these positions."""
        return replace(self, positions=positions)

    def describe(self) -> str:
        """Name the data, its rows and their forms in one line."""
        total = sum(self.forms.values()) or self.count
        rows = f"{self.data}: {total:,} row{'s' if total != 1 else ''}"
        if len(self.forms) == 1:
            return f"{rows}: {next(iter(self.forms))}"
        return ": ".join(
            [rows, *([", ".join(f"{n:,} {form}" for form, n in self.forms.items())] * bool(self.forms))]
        )


def find_data(data: str | Path | None, loss: Loss, most_bytes: int = MAX_ROW_BYTES) -> DataSource:
    """Return the rows to train on: the user's, or the loss's bundled ones.

    Args:
        data: what `--data` names.
        loss: the loss.
        most_bytes: the size of a row above which it is a bad one.

    Raises:
        OptionError: there are neither.
        DataError: the data does not exist.
    """
    if data is not None:
        return open_data(data, most_bytes)
    bundled = loss.bundled_rows
    if bundled is None:
        raise OptionError(f'the loss "{loss.name}" brings no rows of its own; give --data')
    return replace(open_data(bundled), name=f"{bundled.name} (bundled)")


def read_examples(
    data: DataSource, loss: Loss, columns: Mapping[str, str] | None = None, on_bad_row: OnBadRow = "fail"
) -> Examples:
    """Read every row once, so that what is wrong shows before anything slow or paid begins.

    Args:
        data: where the rows come from.
        loss: the loss.
        columns: by field of a form, the column that holds it.
        on_bad_row: "fail" raises at the first bad row, "skip" leaves bad rows out and lists them.

    Raises:
        DataError: the data or a row of it is wrong, with file, line and field; no row is good; a column of
            verdicts has no one reading.
    """
    columns = known_columns(data.name) | dict(columns or {})
    survey = survey_columns(data, loss, columns)
    forms: Counter[str] = Counter()
    unread: Counter[str] = Counter()
    count = rows = 0
    bad_rows: list[BadRow] = []
    for _, reading in read_rows(data, loss, columns, survey):
        if isinstance(reading, BadRow):
            if on_bad_row == "fail":
                raise DataError(str(reading))
            bad_rows.append(reading)
            continue
        rows += 1
        count += len(reading.examples)
        if reading.form is not None:
            forms[reading.form] += 1
        if reading.unread:
            unread.update(reading.unread)
    if not rows:
        raise DataError(f"{bad_rows[0]}; none of the {len(bad_rows):,} rows is good")
    return Examples(
        data, loss, columns, on_bad_row, dict(forms), count, tuple(bad_rows), survey, dict(unread)
    )


def survey_columns(data: DataSource, loss: Loss, columns: Mapping[str, str]) -> Survey:
    """Collect the values of the columns whose meaning only the whole column shows.

    Data whose first rows have no such column is not read through for it.
    """
    survey = Survey()
    names = loss.surveyed_columns
    if not names:
        return survey
    for number, row in enumerate(data.rows()):
        if isinstance(row, Row):
            try:
                values = rename(row.values, columns) if columns else row.values
            except RowError:
                continue
            if found := names & values.keys():
                survey.note(values, found)
        if number >= SURVEYED_ROWS and not survey.values:
            break
    return survey


SURVEYED_ROWS = 1000
"""Rows without a column of verdicts after which none is expected."""


def read_rows(
    data: DataSource, loss: Loss, columns: Mapping[str, str], survey: Survey
) -> Iterator[tuple[Source, Reading | BadRow]]:
    """Yield for each row where it stands and what was read of it, or why nothing was.

    Raises:
        DataError: a column of verdicts has no one reading.
    """
    for row in data.rows():
        if isinstance(row, BadRow):
            yield row.source, row
            continue
        try:
            values = rename(row.values, columns) if columns else row.values
            weight, rest = split_weight(values)
            reading = loss.read_row(rest, survey)
            yield row.source, reading if weight is None else weighted(reading, weight)
        except RowError as error:
            yield row.source, BadRow(row.source, str(error))
        except ColumnRefusedError as error:
            raise DataError(f"{data}: {error}") from None
