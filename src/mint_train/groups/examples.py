"""From rows to examples: renamed, parsed by the loss, counted; what is wrong is named, and lost nowhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mint_train.errors import DataError, OptionError, RowError
from mint_train.losses.loss import Loss
from mint_train.rows.forms import rename
from mint_train.rows.readers import DataSource, open_data
from mint_train.rows.row import BadRow, Example, Row

OnBadRow = Literal["fail", "skip"]


@dataclass(frozen=True)
class Examples:
    """All examples of a source of rows. They are parsed anew in each iteration, and never held together."""

    data: DataSource
    loss: Loss
    columns: Mapping[str, str]
    on_bad_row: OnBadRow
    forms: Mapping[str, int]
    """How many good rows are in which form."""
    count: int
    bad_rows: tuple[BadRow, ...]
    """Rows that are left out, in order; without `on_bad_row="skip"` there are none."""
    places: Set[int] | None = None
    """Which of the good rows these are, counted from 0; without it, all."""

    def __len__(self) -> int:
        return self.count if self.places is None else len(self.places)

    def __iter__(self) -> Iterator[Example]:
        """Parse the rows, one by one.

        Raises:
            DataError: the data has changed since it was first read.
        """
        good = (item for item in parse_rows(self.data, self.loss, self.columns) if isinstance(item, Example))
        for place, example in enumerate(good):
            if self.places is None or place in self.places:
                yield example

    def only(self, places: Set[int]) -> Examples:
        """Return the examples at these places."""
        return replace(self, places=places)

    def describe(self) -> str:
        """Name the data, its rows and their forms in one line."""
        rows = f"{self.data}: {self.count:,} row{'s' if self.count != 1 else ''}"
        if len(self.forms) == 1:
            return f"{rows}: {next(iter(self.forms))}"
        return ": ".join(
            [rows, *([", ".join(f"{n:,} {form}" for form, n in self.forms.items())] * bool(self.forms))]
        )


def find_data(data: str | Path | None, loss: Loss) -> DataSource:
    """Return the rows to train on: the user's, or the loss's bundled ones.

    Raises:
        OptionError: there are neither.
        DataError: there is no such data.
    """
    if data is not None:
        return open_data(data)
    bundled = loss.bundled_rows
    if bundled is None:
        raise OptionError(f'the loss "{loss.name}" brings no rows of its own; give --data')
    return replace(open_data(bundled), name=f"{bundled.name} (bundled)")


def read_examples(
    data: DataSource, loss: Loss, columns: Mapping[str, str] | None = None, on_bad_row: OnBadRow = "fail"
) -> Examples:
    """Let the loss parse every row once, so that what is wrong shows before anything slow or paid begins.

    Args:
        data: where the rows come from.
        loss: the loss.
        columns: by field of a form, the column that holds it.
        on_bad_row: "fail" raises at the first bad row, "skip" leaves bad rows out and lists them.

    Raises:
        DataError: the data or a row of it is wrong, with file, line and field; no row is good.
    """
    columns = columns or {}
    forms: Counter[str] = Counter()
    count = 0
    bad_rows: list[BadRow] = []
    for item in parse_rows(data, loss, columns, forms):
        if isinstance(item, Example):
            count += 1
        elif on_bad_row == "fail":
            raise DataError(str(item))
        else:
            bad_rows.append(item)
    if not count:
        raise DataError(f"{bad_rows[0]}; none of the {len(bad_rows):,} rows is good")
    return Examples(data, loss, columns, on_bad_row, dict(forms), count, tuple(bad_rows))


def parse_rows(
    data: DataSource, loss: Loss, columns: Mapping[str, str], forms: Counter[str] | None = None
) -> Iterator[Example | BadRow]:
    """Yield for each row its example, or why it is none; count its form where asked."""
    for row in data.rows():
        yield row if isinstance(row, BadRow) else parse_row(row, loss, columns, forms)


def parse_row(
    row: Row, loss: Loss, columns: Mapping[str, str], forms: Counter[str] | None = None
) -> Example | BadRow:
    """Parse one row."""
    try:
        values = rename(row.values, columns) if columns else row.values
        example, form = loss.read_row(values)
    except RowError as error:
        return BadRow(row.source, str(error))
    if forms is not None and form is not None:
        forms[form] += 1
    return Example(example, row.source)
