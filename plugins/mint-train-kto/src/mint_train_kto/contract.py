"""The contract of rated completions: per group a rated completion and, where asked for, its baseline's."""

from __future__ import annotations

import numpy as np

from mint_train.batches.batch import Batch
from mint_train.batches.groups import Group
from mint_train.errors import ContractError

LABEL = "label"


def check_rated(batch: Batch, *, with_baseline: bool) -> None:
    """Refuse a batch whose groups are not `[completion]`, or `[completion, unrelated completion]`.

    Args:
        batch: the batch.
        with_baseline: whether each group brings an unrelated completion of the same prompt.

    Raises:
        ContractError: naming the first group that breaks the contract.
    """
    size = 2 if with_baseline else 1
    for number, group in enumerate(batch.groups):
        if len(group.datums) != size:
            wanted = "[completion, unrelated completion]" if with_baseline else "[completion]"
            raise ContractError(f"example {number} has {len(group.datums)} datums, not {wanted}", number)
        for weights, name in zip(group.weights, ("completion", "unrelated completion"), strict=False):
            if not weights.any():
                raise ContractError(f"example {number}: its {name} has no trained token", number)
        if not group.attached or group.attached[0].get(LABEL) not in (0.0, 1.0):
            raise ContractError(f"example {number} has no label of 1.0 (desirable) or 0.0", number)
        if with_baseline:
            check_baseline(number, group)


def check_baseline(number: int, group: Group) -> None:
    """Refuse a baseline completion on another prompt, or one that is the rated completion itself."""
    if not np.array_equal(group.prompts[0], group.prompts[1]):
        raise ContractError(f"example {number}: completion and baseline do not share their prompt", number)
    if np.array_equal(group.targets[0], group.targets[1]):
        raise ContractError(f"example {number}: its baseline is the rated completion itself", number)
