"""A running mean that a loss keeps from step to step."""

from __future__ import annotations

from collections.abc import MutableMapping

import torch


def running_mean(state: MutableMapping[str, float], name: str, value: torch.Tensor, momentum: float) -> float:
    """Move a running mean towards a batch's value and return it; the first batch sets it.

    Args:
        state: the loss's state, saved with each checkpoint.
        name: the mean's name in the state.
        value: the batch's value, a scalar; no gradient flows.
        momentum: how much of the old mean stays, 0 to 1.
    """
    current = float(value.detach())
    state[name] = momentum * state[name] + (1 - momentum) * current if name in state else current
    return state[name]
