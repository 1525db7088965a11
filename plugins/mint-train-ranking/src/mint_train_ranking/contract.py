"""The contract of a ranking: per group two or more different completions of one prompt, best first."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from mint_train.batches.batch import Batch
from mint_train.batches.groups import Group
from mint_train.errors import ContractError

LABEL = "label"
FEWEST = 2


def check_rankings(batch: Batch) -> None:
    """Refuse a batch with a group that is no ranking.

    Raises:
        ContractError: naming the first list that breaks the contract.
    """
    for number, group in enumerate(batch.groups):
        if len(group.datums) < FEWEST:
            raise ContractError(
                f"list {number} has {len(group.datums)} completions; a ranking needs two", number
            )
        check_completions(number, group)
        check_labels(number, group)


def check_completions(number: int, group: Group) -> None:
    """Refuse a list without different trained completions of one prompt."""
    seen: dict[bytes, int] = {}
    for place, weights in enumerate(group.weights):
        if not weights.any():
            raise ContractError(f"list {number}: its completion {place} has no trained token", number)
        if not np.array_equal(group.prompts[place], group.prompts[0]):
            raise ContractError(f"list {number}: completions {place} and 0 do not share their prompt", number)
        other = seen.setdefault(group.targets[place].tobytes(), place)
        if other != place:
            raise ContractError(f"list {number}: completion {place} is equal to completion {other}", number)


def check_labels(number: int, group: Group) -> None:
    """Refuse a list whose labels do not fall from its first completion to its last."""
    labels = [attached.get(LABEL) for attached in group.attached]
    for better, worse in pairwise(labels):
        if not (isinstance(better, float) and isinstance(worse, float) and better >= worse):
            raise ContractError(f"list {number}: its labels {labels} do not fall from best to worst", number)
