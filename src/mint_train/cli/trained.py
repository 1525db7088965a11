"""Finding a trained run, or one of its checkpoints, by the name that a user gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mint_train.backends.base import Backend
from mint_train.backends.choose import choose_backend
from mint_train.errors import OptionError, UserError
from mint_train.losses.trust import check_run_folder
from mint_train.run_folder.description import StartDescription
from mint_train.run_folder.folder import BASE_MODEL, CHECKPOINT_PATHS, RunFolder, holds_run
from mint_train.run_folder.records import ON_THE_SERVICE, Checkpoint
from mint_train.settings.merge import load_settings
from mint_train.settings.model import Settings
from mint_train.settings.recorded import restore_settings, with_given

SAVED_STATE = "/weights/"
"""In the path of a state with its optimiser; other paths are of weights to sample from."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A saved policy, with what is needed to open it again."""

    name: str
    settings: Settings
    backend: Backend
    checkpoint: Checkpoint
    folder: RunFolder | None
    """The run that it belongs to; None for a path on the service."""
    start: StartDescription | None = None
    """The adapter that the run began with; None for a fresh one."""


def find_trained(
    name: str,
    step: int | None,
    given: Mapping[str, Any],
    *,
    trust_loss: bool = False,
    only_read: bool = False,
) -> Trained:
    """Find a run folder, a checkpoint in one, or a path on the service.

    Args:
        name: a run folder, its `checkpoints/step-...` or `adapter`, or `tinker://...`.
        step: which checkpoint of a run folder; without it, the last.
        given: settings on the command line, which for a run folder change the recorded ones; None counts as
            not given.
        trust_loss: run a loss file that is not one of the current folder's own.
        only_read: neither the key nor the loss will be used.

    Raises:
        UserError: it is none of these, or the run does not have that checkpoint.
        OptionError: a setting is wrong, or a path on the service is given without its loss.
    """
    given = {key: value for key, value in given.items() if value is not None}
    if name.startswith(ON_THE_SERVICE):
        return on_the_service(name, step, given)
    path, folder = Path(name), find_folder(name)
    recorded = folder.read_description()
    settings = restore_settings(recorded.settings | {"backend": recorded.backend}, folder.path)
    if not only_read:
        check_run_folder(settings, recorded.loss_files, folder.path, given, trust_loss=trust_loss)
    checkpoint = choose_checkpoint(folder, path, step)
    if (
        given.get("loss", settings.loss) != settings.loss
    ):  # the options and state of one loss mean nothing to another
        given.setdefault("options", {})
        checkpoint = replace(checkpoint, loss_state={})
    elif "options" in given:
        given["options"] = settings.options | given["options"]
    if settings.model is None and not choose_backend(settings).remote:
        given.setdefault("model", str(folder.path / BASE_MODEL))  # created when the run began
    settings = with_given(settings, given)
    return Trained(name, settings, choose_backend(settings), checkpoint, folder, recorded.start)


def on_the_service(name: str, step: int | None, given: Mapping[str, Any]) -> Trained:
    """Return what a path on the service names.

    Raises:
        OptionError: a setting is wrong, or the loss is not given.
    """
    if step is not None:
        raise OptionError(f"--step {step} is for a run folder; {name} is one checkpoint already")
    settings = load_settings({**given, "backend": "mint"})
    weights = None if SAVED_STATE in name else name
    return Trained(name, settings, choose_backend(settings), Checkpoint(0, name, weights, {}), None)


def find_folder(name: str) -> RunFolder:
    """Return the run folder that a name is of, or of a checkpoint in.

    Raises:
        UserError: there is none.
    """
    path = Path(name)
    folder = next((RunFolder(at) for at in (path, *path.parents[:2]) if holds_run(at)), None)
    if folder is None:
        raise UserError(
            f"{name} is neither a run folder nor a checkpoint in one, nor a path on the service "
            f"({ON_THE_SERVICE[0]}...)"
        )
    return folder


def choose_checkpoint(folder: RunFolder, path: Path, step: int | None) -> Checkpoint:
    """Return the checkpoint of a run that a path inside its folder or a step names, else its last one.

    Raises:
        UserError: there is none, or not that one.
    """
    if path == folder.path:
        return folder.checkpoint_after(step)
    for saved in reversed(folder.checkpoints()):
        if str(path) in {getattr(saved, kind) for kind in CHECKPOINT_PATHS}:
            return saved
    raise folder.no_checkpoint(f"at {path}")
