"""Fields that `--columns` names and that nothing reads, such as misspelt ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from mint_train.errors import OptionError, RowError, nearest
from mint_train.rows.columns import flag
from mint_train.rows.forms import Forms, Reading
from mint_train.rows.meaning import MEANINGFUL, plain_name
from mint_train.rows.row_weights import WEIGHT
from mint_train.rows.values import given

CLOSE = 0.8
"""How like another name a misspelt one is."""


class NamedFields:
    """The fields that a user names, checked against what the forms of a loss read of each row."""

    def __init__(self, columns: Mapping[str, str], forms: Forms | None) -> None:
        """Take the fields.

        Args:
            columns: by field, its column.
            forms: all that reads the rows; None where a plugin reads them itself, and may read any field.
        """
        self.columns = columns if forms is not None else {}
        always = MEANINGFUL | {WEIGHT}
        self.known = always if forms is None else always | forms.fields
        sure = always if forms is None else always | forms.checked
        self._left_out = [
            field for field, column in self.columns.items() if not column and field not in self.known
        ]
        self._doubtful = [field for field, column in self.columns.items() if column and field not in sure]

    def check_left_out(self, row: Mapping[str, object]) -> None:
        """Refuse to leave out a column that a row does not have, and that is nearly one which it has.

        Raises:
            OptionError: naming both.
        """
        for field in self._left_out:
            if field not in row and (meant := close(field, self.known & row.keys())):
                raise OptionError(f'{flag({field: ""})} leaves nothing out; did you mean "{meant}"?')

    def check_read(self, row: Mapping[str, object], reading: Reading) -> None:
        """Refuse a field that has a value in a row, and that the row's form does not read.

        Raises:
            OptionError: naming it, and the one that it is like.
        """
        for field in self._doubtful:
            if field in reading.unread and given(row, field):
                said = flag({field: self.columns[field]})
                hint = nearest(field, self.known - {field}) if field not in self.known else ""
                raise OptionError(
                    f'{said}: the field "{field}" is not read in {reading.form}{hint or "; leave it out"}'
                )

    def check_missing(self, row: Mapping[str, object], error: RowError) -> None:
        """Refuse a field that is nearly the one which an error misses, or a known one in capitals.

        Raises:
            OptionError: naming both.
        """
        for field in self._doubtful:
            meant = plain_name(field) if error.field == field else error.field
            missed = error.field not in row and close(field, [meant])
            if field not in self.known and (
                missed or (error.field == field != meant and meant in self.known)
            ):
                said = flag({field: self.columns[field]})
                raise OptionError(f'{said}: nothing reads a field "{field}"; did you mean "{meant}"?')


def close(name: str, names: Iterable[str]) -> str:
    """Return the one of some names that another is a misspelling of, or nothing."""
    return next(iter(get_close_matches(name, list(names), n=1, cutoff=CLOSE)), "")
