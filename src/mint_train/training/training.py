"""One run from its settings: data, loss, backend and folder brought together and handed to the runner."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from functools import partial
from itertools import chain, count
from pathlib import Path
from time import strftime
from typing import Any

from mint_train.backends.base import TrainingClient
from mint_train.backends.choose import choose_backend, model_name, open_client
from mint_train.errors import OptionError, ServiceError, UserError
from mint_train.groups.build import Dataset
from mint_train.groups.examples import Examples, find_data
from mint_train.groups.held_out import refuse_changed
from mint_train.groups.step_count import count_steps
from mint_train.losses.loss import Loss
from mint_train.losses.weighted_sum import open_loss
from mint_train.observers.model_card import CardWriter
from mint_train.observers.registry import Observers, open_observers
from mint_train.plugins.authoring import FunctionLoss
from mint_train.plugins.discovery import NamedPlugin
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.records import RunRecord, RunResult
from mint_train.sdk import types
from mint_train.settings.merge import load_settings
from mint_train.settings.model import Settings
from mint_train.settings.recorded import change_settings, different_run, restore_settings
from mint_train.training.description import describe_run, recorded_settings
from mint_train.training.evaluation import Evaluator
from mint_train.training.lr_schedule import learning_rate
from mint_train.training.pipelining import Pipelining
from mint_train.training.preparing import find_examples, order_of, prepare
from mint_train.training.runner import Runner, pause_seconds


def train(
    loss: str | FunctionLoss, *, options: Mapping[str, Any] | None = None, **settings: Any
) -> RunResult:
    """Train from Python: the same run as `mint-train --loss ...`, with the same settings by name.

    Args:
        loss: the name of an installed loss, or a function under `@mint_train.loss`.
        options: the loss's options.
        settings: fields of `mint_train.settings.model.Settings`, such as `data`, `steps`, `lr`, `output`.

    Raises:
        MintTrainError: as the command line prints it.
    """
    if isinstance(loss, str):
        return train_with(load_settings(settings | {"loss": loss, "options": dict(options or {})}))
    plugin = NamedPlugin(loss.__name__, loss, "this program")
    given = settings | {"loss": plugin.name, "options": dict(options or {})}
    return train_with(load_settings(given), Loss.of(plugin, options))


def train_with(settings: Settings, loss: Loss | None = None) -> RunResult:
    """Start a new run.

    Raises:
        MintTrainError: what the user gave is wrong, or a step failed.
    """
    loss = loss or open_loss(settings.loss, settings.options)
    with open_observers(settings, loss) as observers:
        return start_run(settings, loss, observers)


def start_run(settings: Settings, loss: Loss, observers: Observers) -> RunResult:
    """Start a new run whose observers are registered."""
    path = settings.output or unused_folder(loss.name)
    data = find_data(settings.data, loss)
    examples, held_out = find_examples(settings, loss, data)
    backend = announce(settings, observers)
    with RunFolder.create(path, overwrite=settings.overwrite) as folder:
        try:
            client, dataset, held_out_set = open_prepared(
                settings, loss, observers, examples, held_out, folder, backend
            )
        except BaseException:
            folder.discard()  # it holds no run yet, and must not stand in the way of the next try
            raise
        description = describe_run(settings, loss, backend, examples, dataset, held_out_set)
        description["gradients"] = client.gradients.form
        folder.begin(description)
        runner = make_runner(settings, loss, observers, client, dataset, held_out_set, folder, backend)
        return observe_and_run(runner, settings, backend, description)


def resume_run(path: Path, given: Mapping[str, Any] | None = None) -> RunResult:
    """Continue the run in a folder from its last checkpoint.

    Args:
        path: the run folder.
        given: settings to change, of those that do not make it another run.

    Raises:
        UserError: the folder holds no run or no checkpoint, is in use, or its data has changed; a changed
            setting would make it another run.
        MintTrainError: a step failed.
    """
    folder = RunFolder(path)
    folder.read_description()  # before the lock is made, which would make the folder too
    with folder:
        description = folder.read_description()
        recorded = restore_settings(description["settings"] | {"backend": description["backend"]})
        settings = change_settings(recorded, given or {})
        loss = open_loss(settings.loss, settings.options)
        refuse_other_options(loss, recorded)
        with open_observers(settings, loss) as observers:
            return continue_run(folder, description, settings, loss, observers)


def continue_run(
    folder: RunFolder, description: dict[str, Any], settings: Settings, loss: Loss, observers: Observers
) -> RunResult:
    """Continue a run whose observers are registered."""
    checkpoint = folder.last_checkpoint()
    data = find_data(settings.data, loss)
    if data.fingerprint() != description["data"]["sha256"]:
        raise UserError(f"{data} has changed since this run began; restore it, or start a new run")
    refuse_changed(settings, description["data"]["held_out"])
    examples, held_out = find_examples(settings, loss, data)
    backend = announce(settings, observers)
    # the adapter is still the fresh one, so a reference not kept yet is the policy of the first step
    client, dataset, held_out_set = open_prepared(
        settings, loss, observers, examples, held_out, folder, backend
    )
    runner = make_runner(settings, loss, observers, client, dataset, held_out_set, folder, backend)
    if runner.steps < checkpoint.step:
        raise OptionError(f"--steps {runner.steps}: this run has taken {checkpoint.step} steps already")
    runner.continue_from(checkpoint)
    observers.notice(f"Resuming after step {checkpoint.step}.")
    description |= {"settings": recorded_settings(settings), "steps": runner.steps, "status": "running"}
    description["gradients"] = client.gradients.form
    folder.write_description(description)
    return observe_and_run(runner, settings, backend, description)


def refuse_other_options(loss: Loss, recorded: Settings) -> None:
    """Refuse options of the loss that a resume would change.

    Raises:
        OptionError: naming the first one and both values.
    """
    before = open_loss(recorded.loss, recorded.options).option_values
    for name, value in loss.option_values.items():
        if value != before[name]:
            raise OptionError(different_run(f"--set {name}={value}", before[name]))


def open_prepared(
    settings: Settings,
    loss: Loss,
    observers: Observers,
    examples: Examples,
    held_out: Examples | None,
    folder: RunFolder,
    backend: str,
) -> tuple[TrainingClient, Dataset, Dataset]:
    """Open a client and prepare the data with it; where the service then fails, try again with another."""
    client = open_client(settings, backend, folder.path)
    if client.gradients.note:
        observers.notice(client.gradients.note)
    for number in range(settings.max_retries):
        try:
            return client, *prepare(settings, loss, observers, examples, held_out, client, folder, backend)
        except ServiceError as error:
            client.close()
            observers.hook.run_rolled_back(step=0, problem=str(error))
            time.sleep(pause_seconds(number + 1))
            client = open_client(settings, backend, folder.path)
    return client, *prepare(settings, loss, observers, examples, held_out, client, folder, backend)


def make_runner(
    settings: Settings,
    loss: Loss,
    observers: Observers,
    client: TrainingClient,
    dataset: Dataset,
    held_out: Dataset,
    folder: RunFolder,
    backend: str,
) -> Runner:
    """Give the runner what it needs of the settings."""
    steps = count_steps(settings, len(dataset.groups))
    return Runner(
        loss=loss,
        observers=observers,
        client=client,
        groups=dataset.groups,
        folder=folder,
        steps=steps,
        batch_size=settings.batch_size,
        order=order_of(settings, dataset),
        adam_params=partial(adam_params, settings, steps),
        sampler_name=f"{file_name(loss.name)}-final",
        reopen=partial(open_client, settings, backend, folder.path),
        accumulate=settings.accumulate,
        evaluator=Evaluator(loss, held_out.groups, settings.batch_size) if held_out.groups else None,
        eval_every=settings.eval_every,
        save_every=settings.save_every,
        keep=settings.keep,
        max_retries=settings.max_retries,
        # the embedded backend computes when it is asked, so there is nothing to run ahead of
        pipelining=Pipelining() if settings.pipeline and backend == "mint" else None,
    )


def adam_params(settings: Settings, steps: int, step: int) -> types.AdamParams:
    """Return the optimiser's parameters of a step."""
    return types.AdamParams(
        learning_rate=learning_rate(step, steps, settings.lr, settings.schedule, settings.warmup_steps),
        beta1=settings.adam_beta1,
        beta2=settings.adam_beta2,
        eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
        grad_clip_norm=settings.grad_clip,
    )


def file_name(loss: str) -> str:
    """Make a loss's name or expression fit for a folder and a checkpoint."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", loss).strip("-")


def unused_folder(loss: str) -> Path:
    """Name a new folder in `runs/` by the loss and the time; a second run in one second gets a number."""
    stem = f"{file_name(loss)}-{strftime('%Y-%m-%d-%H%M%S')}"
    names = chain([stem], (f"{stem}-{number}" for number in count(2)))
    return next(path for name in names if not (path := Path("runs", name)).exists())


def observe_and_run(
    runner: Runner, settings: Settings, backend: str, description: Mapping[str, Any]
) -> RunResult:
    """Tell the observers of the run, and run it."""
    record = RunRecord(
        folder=runner.folder.path,
        loss=runner.loss.name,
        backend=backend,
        model=model_name(settings, backend),
        steps=runner.steps,
        groups=len(runner.groups),
        step_line=runner.loss.step_line,
        description=description,
    )
    runner.observers.add(CardWriter(runner.folder))
    runner.observers.hook.run_started(run=record)
    return runner.run()


def announce(settings: Settings, observers: Observers) -> str:
    """Tell the user which backend is taken, and why, before anything slow begins; return it."""
    backend, reason = choose_backend(settings)
    model = model_name(settings, backend)
    note = (
        "; it knows nothing, and is there to try a loss" if backend == "local" and not settings.model else ""
    )
    observers.notice(f"Backend {backend} ({reason}), model {model}{note}.")
    return backend
