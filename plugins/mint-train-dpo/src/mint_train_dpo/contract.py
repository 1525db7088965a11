"""The pairing contract: even datums are chosen, odd ones rejected, both of one pair on one prompt."""

from __future__ import annotations

from mint_train.batches.batch import Batch
from mint_train.batches.groups import Group
from mint_train.errors import ContractError

PAIR = 2


def check_pairs(batch: Batch) -> None:
    """Refuse a batch whose datums are not `[chosen 0, rejected 0, chosen 1, rejected 1, ...]`.

    Raises:
        ContractError: naming the first pair that breaks the contract.
    """
    for number, group in enumerate(batch.groups):
        if len(group.datums) != PAIR:
            raise ContractError(
                f"pair {number} has {len(group.datums)} datums; a pair is [chosen, rejected], "
                "so that even datums are chosen and odd ones rejected",
                number,
            )
        check_pair(number, group)
    if len(batch.data) % PAIR:
        raise ContractError(f"the batch has {len(batch.data)} datums, an odd number; pairs need an even one")


def check_pair(number: int, group: Group) -> None:
    """Refuse a pair without two different trained completions of one prompt."""
    chosen, rejected = group.arrays
    for side, arrays in (("chosen", chosen), ("rejected", rejected)):
        if not arrays.trained:
            raise ContractError(f"pair {number}: its {side} completion has no trained token", number)
    # bytes are compared at a tenth of the price of small arrays
    if chosen.prompt.tobytes() != rejected.prompt.tobytes():
        raise ContractError(f"pair {number}: chosen and rejected do not share their prompt", number)
    if chosen.targets.tobytes() == rejected.targets.tobytes():
        raise ContractError(
            f"pair {number}: chosen is equal to rejected, so there is nothing to prefer", number
        )
