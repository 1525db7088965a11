"""From rows to examples: renamed, read in a form of the loss, counted; bad rows are named, never lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import astuple, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from mint_train.errors import DataError, OptionError, PluginError, RowError, Source
from mint_train.garbage import rare_collections
from mint_train.groups.reading_cache import keep, read_kept, reading_file
from mint_train.losses.loss import Loss
from mint_train.rows.columns import rename
from mint_train.rows.compression import MAX_ROW_BYTES
from mint_train.rows.forms import Reading
from mint_train.rows.known import known_columns
from mint_train.rows.mixture import Data, open_items
from mint_train.rows.readers import DataSource, changed, open_data
from mint_train.rows.row import BadRow, Example, Row
from mint_train.rows.row_weights import split_weight, weighted
from mint_train.rows.unused import NamedFields
from mint_train.rows.verdicts import ColumnRefusedError, Survey
from mint_train.settings.data_items import DataItems, parse_data
from mint_train.settings.model import Settings

OnBadRow = Literal["fail", "skip"]
SURVEYED_ROWS = 1000
"""Rows without a column of verdicts after which none is expected."""
HELD_BYTES = 2**25
"""Bytes of a source up to which its examples are held until they are first iterated."""


@dataclass(frozen=True)
class Part:
    """What one source of rows holds. Each iteration reads the rows anew; the first may find them held."""

    data: DataSource
    loss: Loss
    columns: Mapping[str, str]
    forms: Mapping[str, int]
    """How many good rows are in which form."""
    count: int
    bad_rows: tuple[BadRow, ...]
    """Rows that are left out, in order; without `on_bad_row="skip"` there are none."""
    survey: Survey
    """The values of the columns of verdicts and labels, over all rows."""
    unread: Mapping[str, int]
    """Columns that nothing is read of, such as ids and sources, with how many rows have them."""
    held: list[Example] = field(default_factory=list, repr=False, compare=False)
    """The examples of a small source as they were first read, for the first iteration alone."""

    def __iter__(self) -> Iterator[Example]:
        """Read the rows, one by one.

        Raises:
            DataError: the data has changed since it was first read.
        """
        if self.held:
            held = self.held.copy()
            self.held.clear()
            yield from held
            return
        good = bad = 0
        for source, reading in read_rows(self.data, self.loss, self.columns, self.survey):
            if isinstance(reading, BadRow):
                bad += 1
                continue
            yield from examples_of(reading, source)
            good += len(reading.examples)
        if good != self.count or bad != len(self.bad_rows):
            raise changed(str(self.data))

    def describe(self) -> str:
        """Name the source, its rows and their forms in one line."""
        total = sum(self.forms.values()) or self.count
        rows = f"{self.data}: {total:,} row{'s' if total != 1 else ''}"
        if not self.forms:
            return rows
        if len(self.forms) == 1:
            return f"{rows}: {next(iter(self.forms))}"
        return f"{rows}: {', '.join(f'{count:,} {form}' for form, count in self.forms.items())}"


@dataclass(frozen=True)
class Examples:
    """The examples of one or more sources of rows, one source after another, or some of these examples."""

    data: Data
    parts: tuple[Part, ...]
    on_bad_row: OnBadRow
    positions: Set[int] | None = None
    """Which of the examples these are, counted from 0 over all parts; without it, all."""

    @property
    def count(self) -> int:
        """Examples of all parts."""
        return sum(part.count for part in self.parts)

    @property
    def bad_rows(self) -> tuple[BadRow, ...]:
        """Rows of all parts that are left out, in order."""
        return tuple(chain.from_iterable(part.bad_rows for part in self.parts))

    @property
    def forms(self) -> dict[str, int]:
        """How many good rows of all parts are in which form."""
        return added(part.forms for part in self.parts)

    @property
    def unread(self) -> dict[str, int]:
        """Columns that nothing is read of, with how many rows of all parts have them."""
        return added(part.unread for part in self.parts)

    def __len__(self) -> int:
        return self.count if self.positions is None else len(self.positions)

    def __iter__(self) -> Iterator[Example]:
        """Read the rows, one by one.

        Raises:
            DataError: the data has changed since it was first read.
        """
        if self.positions is None:
            return chain.from_iterable(self.parts)
        chosen = self.positions
        return (
            example for position, example in enumerate(chain.from_iterable(self.parts)) if position in chosen
        )

    def reading_file(self, part: Part) -> Path | None:
        """Return where the reading of a part is kept; None where it is read anew."""
        return reading_file(part.data, part.loss, part.columns, self.on_bad_row)

    def prompts(self) -> Iterator[object]:
        """Yield the prompt of each example, or None where the loss does not say what it is."""
        for example in chain.from_iterable(self.parts):
            yield getattr(example.value, "prompt", None)

    def only(self, positions: Set[int]) -> Examples:
        """Return the examples at these positions."""
        return replace(self, positions=positions)

    def forget_held(self) -> None:
        """Forget the examples that are still held from the first reading; from now on all are read anew."""
        for part in self.parts:
            part.held.clear()

    def describe(self) -> str:
        """Name each source, its rows and their forms in one line."""
        return "; ".join(part.describe() for part in self.parts)


def added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up counts by name."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def find_data(data: DataItems | str | Path | None, loss: Loss, most_bytes: int = MAX_ROW_BYTES) -> Data:
    """Return the rows to train on: the user's, or the loss's bundled ones.

    Args:
        data: what `--data` names.
        loss: the loss.
        most_bytes: the size of a row above which it is a bad one.

    Raises:
        OptionError: there are neither.
        DataError: the data does not exist.
    """
    if items := parse_data(data):
        return open_items(items, most_bytes)
    bundled = loss.bundled_rows
    if bundled is None:
        raise OptionError(f'the loss "{loss.name}" brings no rows of its own; give --data')
    return replace(open_data(bundled), name=f"{bundled.name} (bundled)")


def read_examples(
    data: Data, loss: Loss, columns: Mapping[str, str] | None = None, on_bad_row: OnBadRow = "fail"
) -> Examples:
    """Read every row once, so that what is wrong shows before anything slow or paid begins.

    Args:
        data: where the rows come from.
        loss: the loss.
        columns: by field of a form, the column that holds it; a source's own come first.
        on_bad_row: "fail" raises at the first bad row, "skip" leaves bad rows out and lists them.

    Raises:
        DataError: the data or a row of it is wrong, with file, line and field; no row of a source is good; a
            column of verdicts has no one reading.
    """
    parts = (
        read_part(part, loss, known_columns(part.name) | dict(columns or {}) | dict(part.columns), on_bad_row)
        for part in data.parts
    )
    return Examples(data, tuple(parts), on_bad_row)


def read_training_rows(settings: Settings, loss: Loss) -> Examples:
    """Read every row that settings name to train on, held-out ones among them.

    Raises:
        OptionError: the settings name no data, and the loss has no rows of its own.
        DataError: the data or a row of it is wrong.
    """
    data = find_data(settings.data, loss, settings.max_row_bytes)
    return read_examples(data, loss, settings.columns, settings.on_bad_row)


def read_part(data: DataSource, loss: Loss, columns: Mapping[str, str], on_bad_row: OnBadRow) -> Part:
    """Read every row of one source once, or find what that found before.

    Raises:
        DataError: as for `read_examples`.
    """
    file = reading_file(data, loss, columns, on_bad_row)
    kept = read_kept(file) if file is not None else None
    if kept is not None:
        bad_rows = tuple(BadRow(Source(*source), reason) for *source, reason in kept["bad_rows"])
        survey = Survey(kept["survey"], columns)
        return Part(data, loss, columns, kept["forms"], kept["count"], bad_rows, survey, kept["unread"])
    part = read_part_anew(data, loss, columns, on_bad_row)
    if file is not None:
        data.check_unchanged(content=True)
        reading = {
            "forms": part.forms,
            "count": part.count,
            "bad_rows": [(*astuple(bad.source), bad.reason) for bad in part.bad_rows],
            "survey": part.survey.values,
            "unread": part.unread,
        }
        keep(file, reading)
    return part


@rare_collections()
def read_part_anew(data: DataSource, loss: Loss, columns: Mapping[str, str], on_bad_row: OnBadRow) -> Part:
    """Read every row of one source once.

    Raises:
        DataError: as for `read_examples`.
    """
    hold = data.text_bytes() <= HELD_BYTES
    if hold:
        data.fingerprint()  # what is held counts as the content of this moment
    survey = survey_columns(data, loss, columns)
    forms: Counter[str] = Counter()
    unread: Counter[str] = Counter()
    count = rows = 0
    bad_rows: list[BadRow] = []
    held: list[Example] = []
    for source, reading in read_rows(data, loss, columns, survey):
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
        if hold:
            held.extend(examples_of(reading, source))
    if not rows:
        raise DataError(f"{bad_rows[0]}; none of the {len(bad_rows):,} rows is good")
    return Part(data, loss, columns, dict(forms), count, tuple(bad_rows), survey, dict(unread), held)


def examples_of(reading: Reading, source: Source) -> Iterator[Example]:
    """Yield what was read of a row, each with where the row stands."""
    return (Example(value, source, reading.form, reading.weight) for value in reading.examples)


def survey_columns(data: DataSource, loss: Loss, columns: Mapping[str, str]) -> Survey:
    """Collect the values of the columns whose meaning only the whole column shows.

    Data whose first rows have no such column is not read through for it.
    """
    survey = Survey(columns=columns)
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


def read_rows(
    data: DataSource, loss: Loss, columns: Mapping[str, str], survey: Survey
) -> Iterator[tuple[Source, Reading | BadRow]]:
    """Yield for each row where it stands and what was read of it, or why nothing was.

    Raises:
        DataError: a column of verdicts has no one reading.
        OptionError: nothing reads a field that `columns` names.
    """
    first = loss.terms[0]
    named = NamedFields(columns, None if first.parses else first.forms)
    for row in data.rows():
        if isinstance(row, BadRow):
            yield row.source, row
            continue
        values = row.values
        try:
            named.check_left_out(values)
            values = rename(values, columns) if columns else values
            weight, rest = split_weight(values)
            reading = loss.read_row(rest, survey)
            named.check_read(rest, reading)
            yield row.source, reading if weight is None else weighted(reading, weight)
        except ColumnRefusedError as error:
            raise DataError(f"{data}: {error}") from None
        except RowError as error:
            named.check_missing(values, error)
            yield row.source, BadRow(row.source, str(error))
        except PluginError as error:
            error.locate(row.source)
            raise
