"""The texts of held-out rows, read from the files that a run was evaluated on."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from mint_train.errors import MintTrainError
from mint_train.report.curves import Run
from mint_train.rows.compression import MAX_ROW_BYTES
from mint_train.rows.readers import DataSource, open_item, waits_for_writer
from mint_train.rows.row import Row
from mint_train.settings.data_items import (
    HUB,
    STANDARD_INPUT,
    DataItem,
    parse_data,
    parse_held_out,
    relocated,
)


def row_texts(run: Run, sources: Collection[str]) -> dict[str, dict[str, str]]:
    """Return the fields of held-out rows by their source; none from a file that is not what it was."""
    found: dict[str, dict[str, str]] = {}
    recorded = recorded_files(run, sources) if sources else []
    for item, digest in recorded:
        data = open_unchanged(relocated(item, run.folder), digest, most_bytes_of(run))
        if data is not None:
            alone = len(recorded) == len(data.shards) == 1
            with suppress(MintTrainError):  # the file was replaced or removed just now
                found |= fields_in(data, sources, alone=alone)
    return found


def recorded_files(run: Run, sources: Collection[str]) -> list[tuple[DataItem, str]]:
    """Return the data that held-out rows are of, each with its SHA-256."""
    settings, data = run.description.settings, run.description.data
    if settings.get("eval_data"):
        sets = parse_held_out(settings["eval_data"])
        return [(sets[held.name], held.sha256) for held in data.held_out if held.name in sets]
    items = parse_data(settings.get("data"))
    if not items:  # the loss's bundled rows, which the settings do not name
        items = tuple(DataItem(path) for path in {source.rpartition(":")[0] for source in sources})
    return [(item, source.sha256) for item, source in zip(items, data.sources, strict=False)]


def most_bytes_of(run: Run) -> int:
    """Return the size of a row above which the run took it for a bad one."""
    return int(run.description.settings.get("max_row_bytes") or MAX_ROW_BYTES)


def open_unchanged(item: DataItem, digest: str, most_bytes: int) -> DataSource | None:
    """Open data that can be read again here and has its SHA-256 still; None for any other."""
    if item.name == STANDARD_INPUT or item.name.startswith(tuple(HUB)) or waits_for_writer(item.name):
        return None
    with suppress(MintTrainError):
        data = open_item(item, most_bytes)
        return data if data.fingerprint() == digest else None
    return None


def fields_in(data: DataSource, sources: Collection[str], *, alone: bool) -> dict[str, dict[str, str]]:
    """Return the fields of the rows of a file.

    Args:
        data: the rows.
        sources: which of them.
        alone: whether it is the only file, so that a row's number identifies it, whatever the file's path.
    """
    wanted = {number_of(source) if alone else source: source for source in sources}
    found: dict[str, dict[str, str]] = {}
    for row in data.rows():
        source = wanted.pop(str(row.source.line) if alone else str(row.source), None)
        if source is not None and isinstance(row, Row):
            found[source] = as_texts(row.values)
        if not wanted:
            break
    return found


def number_of(source: str) -> str:
    """Return the number of a line or a row at the end of where it stands."""
    return re.sub(r".*\D", "", source, flags=re.DOTALL)


def as_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields of a row as texts."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for name, value in values.items()
    }
