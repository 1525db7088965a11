"""Several sources of rows, read one after another as if they were one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from mint_train.errors import DataError
from mint_train.rows.compression import MAX_ROW_BYTES
from mint_train.rows.readers import DataSource, changed, joined_digest, open_item
from mint_train.settings.data_items import DataItem


@dataclass(frozen=True)
class Mixture:
    """The sources of a run that has more than one."""

    parts: tuple[DataSource, ...]

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """The names of all sources."""
        return ", ".join(part.name for part in self.parts)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the sources' own ones in order, hexadecimal."""
        return self.first_digest

    @cached_property
    def first_digest(self) -> str:
        """The SHA-256 at the first use."""
        return joined_digest(part.fingerprint() for part in self.parts)

    def check_unchanged(self, *, content: bool = False) -> None:
        """Refuse sources that have been written to since they were opened, as `DataSource` does."""
        for part in self.parts:
            part.check_unchanged()
        if content and joined_digest(part.digest() for part in self.parts) != self.fingerprint():
            raise changed(self.name)


Data = DataSource | Mixture


def open_items(items: Iterable[DataItem], most_bytes: int = MAX_ROW_BYTES) -> Data:
    """Open all sources of a run, each once.

    Args:
        items: the sources.
        most_bytes: the size of a row above which it is a bad one.

    Raises:
        DataError: one is missing or unreadable, or a file is in two of them.
    """
    parts = tuple(open_item(item, most_bytes) for item in items)
    times = Counter(os.path.realpath(path) for part in parts for path in part.paths())
    if twice := next((path for path, count in times.items() if count > 1), None):
        names = " and ".join(part.name for part in parts if twice in map(os.path.realpath, part.paths()))
        raise DataError(
            f"--data {names}: a file would be read twice; give it once, with a weight if it is to count more"
        )
    return parts[0] if len(parts) == 1 else Mixture(parts)
