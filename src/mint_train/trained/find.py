"""Finding a trained run, or one of its checkpoints, by the name that a user gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mint_train.backends.base import Backend
from mint_train.backends.choose import choose_backend
from mint_train.backends.start import run_and_step
from mint_train.errors import OptionError, UserError
from mint_train.losses.loss import Loss
from mint_train.losses.recorded import open_run_loss
from mint_train.losses.trust import check_address, check_loss_files
from mint_train.losses.weighted_sum import open_loss
from mint_train.plugins.authoring import FunctionLoss
from mint_train.plugins.functions import named_function
from mint_train.run_folder.base_model import base_model_folder, refuse_changed_model
from mint_train.run_folder.description import RunDescription, StartDescription
from mint_train.run_folder.folder import CHECKPOINT_PATHS, RunFolder
from mint_train.run_folder.records import ON_THE_SERVICE, SAVED_STATE, Checkpoint
from mint_train.run_folder.replacing import holds_run
from mint_train.run_folder.several_runs import name_one
from mint_train.settings.merge import load_settings
from mint_train.settings.model import Settings
from mint_train.settings.recorded import merged_options, restore_settings, with_given


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
    function: FunctionLoss | None = None
    """The loss, if it is a function of the calling program."""
    trust_loss: bool = False
    """Whether a file that is not one of the current folder's own may be run as the loss."""

    def open_loss(self) -> Loss:
        """Open the loss that the settings name.

        Raises:
            UserError: it is missing or broken, or a function that only its own program can give.
        """
        if self.folder is not None:
            recorded = self.folder.read_description()
            return open_run_loss(
                recorded, self.folder.path, self.settings, self.function, trust_loss=self.trust_loss
            )
        if self.function is not None:
            return Loss.of(named_function(self.function), self.settings.options)
        return open_loss(self.settings.loss, self.settings.options)


def find_trained(
    name: str,
    step: int | str | None,
    given: Mapping[str, Any],
    *,
    loss: FunctionLoss | None = None,
    trust_loss: bool = False,
    only_read: bool = False,
) -> Trained:
    """Find a run folder, a checkpoint in one, or a path on the service.

    Args:
        name: a run folder, `RUN@STEP`, `RUN@best`, a run's `checkpoints/step-...` or `adapter`, or `tinker://...`.
        step: which checkpoint of a run folder: its step, "best" or "last"; without it, the best by the
            run's `--select-by`, else the last.
        given: settings on the command line, which change those of a run folder; None is not given.
        loss: the loss, if it is a function of the calling program.
        trust_loss: run a loss file that is not one of the current folder's own.
        only_read: neither the key nor the loss will be used.

    Raises:
        UserError: it is none of these, the run does not have that checkpoint, or a setting is wrong.
    """
    given = {key: value for key, value in given.items() if value is not None}
    given |= {"loss": loss.__name__} if loss is not None else {}
    if name.startswith(ON_THE_SERVICE):
        return on_the_service(name, step, given, loss)
    name, step = step_in_name(name, step)
    folder = find_folder(name)
    recorded = folder.read_description()
    settings = settings_of(recorded, folder, given)
    if not only_read:
        check_address(settings, given.get("base_url"))
        if given.get("loss") is None:
            check_loss_files(settings.loss, recorded.loss_files, folder.path, trust_loss=trust_loss)
    checkpoint = choose_checkpoint(folder, Path(name), step)
    same = given.get("loss", settings.loss) == settings.loss
    if not same:  # the options and state of one loss mean nothing to another
        checkpoint = replace(checkpoint, loss_state={})
    given["options"] = merged_options(settings.options if same else {}, given.get("options", {}))
    if settings.model is None and not choose_backend(settings).remote:
        given.setdefault("model", str(base_model_folder(settings, folder.path)))
    settings = with_given(settings, given)
    backend, start = choose_backend(settings), recorded.start
    return Trained(name, settings, backend, checkpoint, folder, start, loss, trust_loss)


def step_in_name(name: str, step: int | str | None) -> tuple[str, int | str | None]:
    """Return the run and the step that `RUN@STEP` names; any other name and the step as they are.

    Raises:
        OptionError: the step is given twice.
    """
    run, named = run_and_step(name)
    if run is None or named is None:
        return name, step
    refuse_second_step(name, step)
    return str(run.path), named


def refuse_second_step(name: str | Path, step: int | str | None) -> None:
    """Refuse a step beside a name that has one.

    Raises:
        OptionError: naming both.
    """
    if step is not None:
        raise OptionError(f"the step is given twice, by {name} and by --step {step}; leave one of them out")


def settings_of(recorded: RunDescription, folder: RunFolder, given: Mapping[str, Any]) -> Settings:
    """Return the settings that a run began with.

    Raises:
        UserError: its base model has changed since then, and no other one is given.
    """
    settings = restore_settings(recorded.settings | {"backend": recorded.backend}, folder.path)
    if "model" not in given:
        refuse_changed_model(recorded, base_model_folder(settings, folder.path))
    return settings


def on_the_service(
    name: str, step: int | str | None, given: Mapping[str, Any], loss: FunctionLoss | None
) -> Trained:
    """Return what a path on the service names.

    Raises:
        OptionError: a setting is wrong, or the loss is not given.
    """
    if step is not None:
        raise OptionError(f"--step {step} is for a run folder; {name} is one checkpoint already")
    settings = load_settings({**given, "backend": "mint"})
    weights = None if SAVED_STATE in name else name
    checkpoint = Checkpoint(0, name, weights, {})
    return Trained(name, settings, choose_backend(settings), checkpoint, None, function=loss)


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
            f"({ON_THE_SERVICE[0]}...){name_one(path)}"
        )
    return folder


def choose_checkpoint(folder: RunFolder, path: Path, step: int | str | None) -> Checkpoint:
    """Return the checkpoint that a path inside a run's folder or a step names, else its best or last one.

    Raises:
        UserError: there is none, or not that one.
    """
    if path == folder.path:
        return folder.checkpoint_after(step)
    refuse_second_step(path, step)
    for saved in reversed(folder.checkpoints()):
        if str(path) in {getattr(saved, kind) for kind in CHECKPOINT_PATHS}:
            return saved
    raise folder.no_checkpoint(f"checkpoint at {path}")
