"""What losses share that compare the pairs of a whole batch with one another."""

from __future__ import annotations

from mint_train.plugin import Batch


def note_single_pair(batch: Batch) -> str | None:
    """Say so where the first batch has one pair, so that there is nothing to compare it with."""
    if len(batch.groups) > 1:
        return None
    return (
        "This loss compares the pairs of a batch with one another, and the first batch has one pair: "
        "raise --batch-size."
    )
