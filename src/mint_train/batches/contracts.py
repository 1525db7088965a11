"""Contracts of batches, a line each: what a loss's `check_batch` asks of every group.

Each function takes what a message calls a group, such as "pair", and the names of its datums, such as
("chosen", "rejected"). Datums without names are called "completion 0", "completion 1", ...
"""

from __future__ import annotations

from collections.abc import Sequence

from mint_train.batches.batch import Batch
from mint_train.errors import ContractError


def require_group_size(
    batch: Batch, size: int, called: str = "group", names: Sequence[str] = (), *, or_more: bool = False
) -> None:
    """Require a number of datums in each group.

    Args:
        batch: the batch.
        size: the number.
        called: what a message calls a group.
        names: the datums' names, in order.
        or_more: whether a group may have more.

    Raises:
        ContractError: naming the first group with another number of datums.
    """
    for number, group in enumerate(batch.groups):
        count = len(group.datums)
        if count != size and not (or_more and count > size):
            wanted = f"{size} or more" if or_more else f"[{', '.join(names)}]" if names else f"{size}"
            raise ContractError(
                f"{called} {number} has {count} datum{'s' * (count != 1)}; a {called} is {wanted}", number
            )


def require_trained(batch: Batch, called: str = "group", names: Sequence[str] = ()) -> None:
    """Require at least one target token of non-zero weight in each datum.

    Raises:
        ContractError: naming the first group and datum without one.
    """
    for number, group in enumerate(batch.groups):
        for index, count in enumerate(group.trained_lengths):
            if not count:
                raise ContractError(
                    f"{called} {number}: its {datum_name(index, names)} has no trained token", number
                )


def require_same_prompt(batch: Batch, called: str = "group", names: Sequence[str] = ()) -> None:
    """Require that the datums of each group share their prompt: the tokens before the first trained one.

    Raises:
        ContractError: naming the first group and the two datums whose prompts differ.
    """
    for number, group in enumerate(batch.groups):
        # bytes are compared at a tenth of the price of small arrays
        first, *others = [prompt.tobytes() for prompt in group.prompts]
        for index, other in enumerate(others, start=1):
            if other != first:
                one, two = datum_name(0, names), datum_name(index, names)
                raise ContractError(f"{called} {number}: {one} and {two} do not share their prompt", number)


def require_distinct(batch: Batch, called: str = "group", names: Sequence[str] = ()) -> None:
    """Require that the datums of each group differ in their target tokens.

    Raises:
        ContractError: naming the first group and the two datums that are equal.
    """
    for number, group in enumerate(batch.groups):
        seen: dict[bytes, int] = {}
        for index, targets in enumerate(group.targets):
            other = seen.setdefault(targets.tobytes(), index)
            if other != index:
                one, two = datum_name(other, names), datum_name(index, names)
                raise ContractError(f"{called} {number}: {two} is equal to {one}", number)


def datum_name(index: int, names: Sequence[str]) -> str:
    """Name a datum of a group, which mostly stands for a completion."""
    return names[index] if index < len(names) else f"completion {index}"
