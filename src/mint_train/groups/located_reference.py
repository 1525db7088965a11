"""What a reference is called, so that a run keeps to the one that it has when it begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def without_same_reference(options: Mapping[str, Any], loss: Loss) -> dict[str, Any]:
    """Leave out options that name the reference of a recorded loss as the user typed it when it began."""
    known = loss.reference
    if known is None:
        return dict(options)
    naming = {name for name, value in loss.option_values.items() if value == known}
    naming |= {name.rpartition(".")[2] for name in naming}  # without a term's name it is for all terms
    same = {name for name, value in options.items() if name in naming and is_named(known, value)}
    return {name: value for name, value in options.items() if name not in same}


def is_named(known: str, value: object) -> bool:
    """Return whether a value names a located reference without its whole path, or without its commit."""
    return isinstance(value, str) and (known.startswith(f"{value}@") or known == str(Path(value).resolve()))


def key_of(reference: str, backend: Backend) -> str:
    """Return what logprobs of a reference are kept under: its name, and in a folder the version of its files.

    Raises:
        UserError: a file cannot be read.
    """
    if reference == INITIAL or backend.remote or not Path(reference).is_dir():
        return reference
    return f"{reference} {ModelVersion.of(reference).version}"
