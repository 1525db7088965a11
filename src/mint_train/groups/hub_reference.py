"""A reference on the hub: a run keeps to the commit that it has when the run begins."""

from __future__ import annotations

from mint_train.backends.base import Backend
from mint_train.backends.hub_model import pinned
from mint_train.groups.reference import INITIAL, is_state
from mint_train.losses.loss import Loss


def options_at_commit(loss: Loss, backend: Backend) -> dict[str, str]:
    """Return the options that name a reference on the hub, by name, with the commit that it has now.

    Empty where there is none, where it names its commit, and where a service, which has models of its own,
    computes it. A reference that is no option's value but what a plugin makes of them is not found.
    """
    name = loss.reference
    if name is None or name == INITIAL or backend.remote or is_state(name):
        return {}
    at_commit = pinned(name)
    if at_commit == name:
        return {}
    return {option: at_commit for option, value in loss.option_values.items() if value == name}
