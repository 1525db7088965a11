"""What a loss's `flatten` returned, checked: what a file could hold only as something else is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mint_train.batches.groups import Group
from mint_train.errors import ContractError
from mint_train.plugins.returned import shown

LARGEST_TOKEN = 2**31 - 1


def check_groups(groups: Sequence[Group]) -> None:
    """Refuse tokens that no model has, weights that are not finite, and parts of uneven lengths.

    Raises:
        ContractError: the first one, with its file and line.
    """
    datums = [one for group in groups for one in group.arrays]
    tokens = np.concatenate([part for one in datums for part in (one.inputs, one.targets)])
    weights = np.concatenate([one.weights for one in datums])
    if not (in_range(tokens) and np.isfinite(weights).all()):
        raise next(problems(groups))
    for group in groups:
        attached = any(not isinstance(one, Mapping) or one for one in group.attached)
        if attached or not all(is_even(group, number) for number in range(len(group.datums))):
            for problem in problems([group]):
                raise problem


def in_range(tokens: np.ndarray) -> bool:
    """Return whether all tokens are integers that a vocabulary can have."""
    return not len(tokens) or (
        tokens.dtype.kind in "iu" and int(tokens.min()) >= 0 and int(tokens.max()) <= LARGEST_TOKEN
    )


def is_even(group: Group, number: int) -> bool:
    """Return whether a datum has targets, and as many inputs and weights."""
    arrays = group.arrays[number]
    return len(arrays.inputs) == len(arrays.targets) == len(arrays.weights) > 0


def problems(groups: Sequence[Group]) -> Iterator[ContractError]:
    """Yield what is wrong with each datum of some groups."""
    for group in groups:
        for number, arrays in enumerate(group.arrays):
            where = f"{group.source}: datum {number + 1} of flatten"
            for tokens in (arrays.inputs, arrays.targets):
                if not in_range(tokens):
                    wrong = [token for token in tokens.tolist() if not is_token(token)]
                    yield ContractError(
                        f"{where} has the token {wrong[0]}, but a token is an integer from 0 to 2**31 - 1"
                    )
            if not is_even(group, number):
                yield ContractError(
                    f"{where} has {len(arrays.inputs)} inputs, {len(arrays.targets)} targets and "
                    f"{len(arrays.weights)} weights; it needs as many of each, and at least one"
                )
            if not np.isfinite(arrays.weights).all():
                yield ContractError(f"{where} has a weight that is not a finite number")
            attached: object = group.attached[number] if group.attached else {}
            if not isinstance(attached, Mapping):
                yield ContractError(f"{where} attaches {shown(attached)}; give numbers by their names")
                continue
            for name, value in attached.items():
                if (reason := attachment_problem(value, len(arrays.targets))) is not None:
                    yield ContractError(f'{where}: what is attached as "{name}" {reason}')


def is_token(token: object) -> bool:
    """Return whether a number can be a token."""
    return isinstance(token, int) and 0 <= token <= LARGEST_TOKEN


def attachment_problem(value: object, targets: int) -> str | None:
    """Say what is wrong with an attached value, or return None."""
    if isinstance(value, (str, bytes, Mapping)):
        return f"is {type(value).__name__}, not a number or a sequence of numbers"
    if not isinstance(value, Sequence):
        return None if is_number(value) else f"is {shown(value)}, not a finite number"
    if len(value) != targets:
        return f"has {len(value)} numbers for {targets} target tokens"
    wrong = next((each for each in value if not is_number(each)), None)
    return None if wrong is None else f"holds {shown(wrong)}, not a finite number"


def is_number(value: object) -> bool:
    """Return whether a value is a finite number."""
    try:
        return bool(np.isfinite(float(value)))  # type: ignore[arg-type]
    except Exception:  # of a type of the plugin's own
        return False
