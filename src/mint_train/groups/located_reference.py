"""What a reference and files of options are called, so that a run keeps to those that it begins with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mint_train.backends.base import Backend
from mint_train.backends.hub_model import ModelVersion, pinned
from mint_train.backends.start import run_and_step
from mint_train.errors import OptionError
from mint_train.groups.reference import INITIAL
from mint_train.losses.loss import Loss
from mint_train.run_folder.folder import BEST, LAST


def located(reference: str, backend: Backend) -> str:
    """Name a reference so that it is found again: a folder by its absolute path, a hub model by its commit.

    A service has models of its own, which keep their names.

    Raises:
        OptionError: it is a run, which has several policies.
    """
    run, step = run_and_step(reference)
    if run is not None:
        step = run.best_step() if step == BEST else step
        states = [saved.state for saved in run.checkpoints() if step in (None, LAST, saved.step)]
        such_as = f", such as --set reference={states[-1]}" if states else "; it has none"
        raise OptionError(f"--set reference={reference}: it is a run; name a state of it{such_as}")
    if reference == INITIAL or backend.remote:
        return reference
    return str(Path(reference).resolve()) if Path(reference).is_dir() else pinned(reference)


def options_located(loss: Loss, backend: Backend) -> dict[str, str]:
    """Return the options whose value names the reference or a path, with a name by which it is found again.

    A name of the reference that a plugin computes from its options is left as it is.
    """
    changed = {option: str(path.resolve()) for option, path in relative_paths(loss).items() if path.exists()}
    name = loss.reference
    if name is not None and (found := located(name, backend)) != name:
        changed |= {option: found for option, value in loss.option_values.items() if value == name}
    return changed


def relative_paths(loss: Loss) -> dict[str, Path]:
    """Return the options that are paths relative to the current folder."""
    return {
        f"{term.name}." * loss.is_sum + name: value
        for term in loss.terms
        for name, value in term.options
        if isinstance(value, Path) and not value.is_absolute()
    }


def without_same_names(options: Mapping[str, Any], loss: Loss) -> dict[str, Any]:
    """Leave out options that name what a recorded loss has as the user typed it when the run began."""

    def says_the_same(name: str, value: object) -> bool:
        # without a term's name it is for all terms
        recorded = [
            known for key, known in loss.option_values.items() if name in (key, key.rpartition(".")[2])
        ]
        return bool(recorded) and all(is_named(known, value, loss.reference) for known in recorded)

    return {name: value for name, value in options.items() if not says_the_same(name, value)}


def is_named(known: object, value: object, reference: str | None) -> bool:
    """Return whether a value names a path without its beginning, or a reference without its commit."""
    if not isinstance(value, str | Path) or not isinstance(known, str):
        return False
    return known == str(Path(value).resolve()) or (known == reference and known.startswith(f"{value}@"))


def key_of(reference: str, backend: Backend) -> str:
    """Return what logprobs of a reference are kept under: its name, and in a folder the version of its files.

    Raises:
        UserError: a file cannot be read.
    """
    if reference == INITIAL or backend.remote or not Path(reference).is_dir():
        return reference
    return f"{reference} {ModelVersion.of(reference).version}"
