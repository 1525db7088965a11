"""Rows that are both trained on and held out, found by their tokens."""

from __future__ import annotations

from collections.abc import Collection

from mint_train.groups.build import Dataset
from mint_train.groups.token_file import StoredGroups


def count_overlap(held_out: Dataset, trained: Dataset, untrained: Collection[int]) -> int:
    """Count the held-out groups whose tokens are those of a group that is trained on.

    Args:
        held_out: the groups that are evaluated.
        trained: the groups that are trained on.
        untrained: positions in a group of datums that the loss does not train: they may be another row's.
    """
    if not (isinstance(held_out.groups, StoredGroups) and isinstance(trained.groups, StoredGroups)):
        return 0
    digests = list(held_out.groups.digests(untrained))
    # a digest takes twenty times as long as the sum of squares, which few different groups share
    squares = held_out.groups.squares(untrained)
    met = set(digests).intersection(trained.groups.digests(untrained, squares))
    return sum(digest in met for digest in digests)


def overlap_note(count: int, total: int, name: str = "") -> str:
    """Say that held-out groups are trained on; nothing for none."""
    if not count:
        return ""
    of_set = f" of {name}" if name else ""
    groups = f"{count} of {total} held-out groups{of_set} {'is' if count == 1 else 'are'}"
    return f"{groups} in the training data too: their figures do not show how the policy does on new rows."
