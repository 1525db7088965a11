"""Rows that a program gives: a list, an iterable, a data set, a data frame or a table of columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, time
from itertools import chain
from typing import Any

from mint_train.errors import DataError
from mint_train.rows.row import kind
from mint_train.rows.tables import undecoded, without_absent


def given_rows(rows: Any, name: str) -> Iterator[bytes]:
    """Yield each row as a line of JSON.

    Args:
        rows: dictionaries (a list, an iterable, a `datasets.Dataset`), or a frame of pandas or polars or a
            table of Arrow, whose missing cells are left out.
        name: what errors call them.

    Raises:
        DataError: a row holds what JSON cannot, or is not a dictionary.
    """
    for number, row in enumerate(row_values(rows), start=1):
        if not isinstance(row, Mapping):
            raise DataError(f"{name} row {number}: a row must be an object with fields, not {kind(row)}")
        try:
            yield json.dumps(dict(row), default=plain).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{name} row {number}: cannot be written as JSON: {error}") from error


def row_values(rows: Any) -> Iterable[Any]:
    """Return the rows of whatever holds them."""
    if hasattr(rows, "itertuples"):  # pandas
        names = [str(column) for column in rows.columns]
        tuples = rows.itertuples(index=False, name=None)
        return (without_absent(dict(zip(names, map(cell, values), strict=True))) for values in tuples)
    if hasattr(rows, "iter_rows"):  # polars
        return map(without_absent, rows.iter_rows(named=True))
    if hasattr(rows, "to_batches"):  # Arrow
        return map(without_absent, chain.from_iterable(batch.to_pylist() for batch in rows.to_batches()))
    if hasattr(rows, "features"):  # datasets
        return map(without_absent, undecoded(rows))
    values: Iterable[Any] = rows
    return values


def cell(value: Any) -> Any:
    """Return a cell of a frame of pandas, which writes a missing one as NaN, NaT or NA."""
    missing = type(value).__name__ in {"NAType", "NaTType"} or (isinstance(value, float) and value != value)
    return None if missing else value


def plain(value: Any) -> Any:
    """Return what JSON does not have as something that it does: numbers of numpy, dates, mappings.

    Raises:
        TypeError: it has nothing like it.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return list(value)
    raise TypeError(f"it holds {type(value).__name__}")
