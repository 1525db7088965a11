"""What a reference is called, so that a run keeps to the one that it has when it begins."""

from __future__ import annotations

from pathlib import Path

from mint_train.backends.base import Backend
from mint_train.backends.hub_model import ModelVersion, pinned
from mint_train.groups.reference import INITIAL
from mint_train.losses.loss import Loss


def located(reference: str, backend: Backend) -> str:
    """Name a reference so that it is found again: a folder by its absolute path, a hub model by its commit.

    A service has models of its own, which keep their names.
    """
    if reference == INITIAL or backend.remote:
        return reference
    return str(Path(reference).resolve()) if Path(reference).is_dir() else pinned(reference)


def options_located(loss: Loss, backend: Backend) -> dict[str, str]:
    """Return the options whose value names the reference, with a name by which it is found again.

    A name that a plugin computes from its options is left as it is.
    """
    name = loss.reference
    if name is None or (found := located(name, backend)) == name:
        return {}
    return {option: found for option, value in loss.option_values.items() if value == name}


def key_of(reference: str, backend: Backend) -> str:
    """Return what logprobs of a reference are kept under: its name, and in a folder the version of its files.

    Raises:
        UserError: a file cannot be read.
    """
    if reference == INITIAL or backend.remote or not Path(reference).is_dir():
        return reference
    return f"{reference} {ModelVersion.of(reference).version}"
