"""Fewer garbage collections while rows are prepared and steps are taken."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

OBJECTS_PER_COLLECTION = 100_000
"""Objects allocated between two garbage collections; Python's own default is 700."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Run the cyclic garbage collector less often: rows and steps need many objects but few cycles."""
    before = gc.get_threshold()
    gc.freeze()  # what is loaded by now stays, so it need not be scanned
    gc.set_threshold(OBJECTS_PER_COLLECTION, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
