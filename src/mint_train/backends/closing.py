"""What is opened on a service is closed where what follows fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Closable(Protocol):
    """A client, a session, or what else holds something on a service."""

    def close(self) -> None:
        """Release it."""
        ...


@contextmanager
def closed_on_failure(held: Closable) -> Iterator[None]:
    """Close what was opened if what is done with it fails: a service would keep its slot for minutes."""
    try:
        yield
    except BaseException:
        held.close()
        raise
