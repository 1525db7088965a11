"""The contract of rollouts: one datum a group, with an old logprob and an advantage per target token."""

from __future__ import annotations

from collections.abc import Sequence

from mint_train.batches.batch import Batch
from mint_train.errors import ContractError

OLD_LOGPROBS, ADVANTAGES = "old_logprobs", "advantages"


def check_rollouts(batch: Batch) -> None:
    """Refuse a batch whose groups are not one trained datum each, with its values per token.

    Raises:
        ContractError: naming the first group that breaks the contract.
    """
    for number, group in enumerate(batch.groups):
        if len(group.datums) != 1:
            raise ContractError(f"rollout {number} has {len(group.datums)} datums; it must be one", number)
        if not group.weights[0].any():
            raise ContractError(f"rollout {number} has no trained token", number)
        attached = group.attached[0] if group.attached else {}
        for name in (OLD_LOGPROBS, ADVANTAGES):
            values = attached.get(name)
            if not isinstance(values, Sequence) or len(values) != group.lengths[0]:
                raise ContractError(f"rollout {number} lacks one of its {name} per target token", number)
