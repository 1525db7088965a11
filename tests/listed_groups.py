"""Groups in memory, as a run has them on disk."""

from __future__ import annotations

from collections.abc import Sequence

from mint_train.batches.groups import Group, Groups


class ListedGroups(Groups):
    """Groups in memory."""

    def __init__(self, groups: Sequence[Group] = ()) -> None:
        self._groups = groups

    def __len__(self) -> int:
        return len(self._groups)

    def take(self, positions: Sequence[int]) -> list[Group]:
        """Return the groups at some positions, in that order."""
        return [self._groups[position] for position in positions]
