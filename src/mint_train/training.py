"""One run from its settings: data, loss, backend and folder brought together and handed to the runner."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from time import strftime
from typing import Any

import click

from mint_train.authoring import FunctionLoss
from mint_train.backends.base import TrainingClient
from mint_train.backends.choose import choose_backend, model_name, open_client
from mint_train.batches import Batch
from mint_train.dataset import Dataset, Example, build_dataset, find_data, fingerprint, read_examples
from mint_train.errors import UserError
from mint_train.losses import Loss
from mint_train.order import step_indices, steps_per_epoch
from mint_train.plugins import NamedPlugin
from mint_train.records import RunRecord, RunResult
from mint_train.reference import INITIAL, REFERENCE_FILE, open_reference, with_reference
from mint_train.report.console import Console
from mint_train.run_folder import RunFolder
from mint_train.runner import Runner
from mint_train.schedule import learning_rate
from mint_train.sdk import types
from mint_train.settings import DEFAULT_STEPS, Settings, load_settings, restore_settings
from mint_train.weighted_sum import open_loss

SHOWN_LEFT_OUT = 5
PACKAGES = ("mint-train", "mindlab-toolkit", "peft", "torch", "transformers")


def train(
    loss: str | FunctionLoss, *, options: Mapping[str, Any] | None = None, **settings: Any
) -> RunResult:
    """Train from Python: the same run as `mint-train --loss ...`, with the same settings by name.

    Args:
        loss: the name of an installed loss, or a function under `@mint_train.loss`.
        options: the loss's options.
        settings: fields of `mint_train.settings.Settings`, such as `data`, `steps`, `lr`, `output`.

    Raises:
        MintTrainError: as the command line prints it.
    """
    if isinstance(loss, str):
        return train_with(load_settings(settings | {"loss": loss, "options": dict(options or {})}))
    plugin = NamedPlugin(loss.__name__, loss, "this program")
    given = settings | {"loss": plugin.name, "options": dict(options or {})}
    return train_with(load_settings(given), Loss(plugin, options))


def train_with(settings: Settings, loss: Loss | None = None) -> RunResult:
    """Start a new run.

    Raises:
        MintTrainError: what the user gave is wrong, or a step failed.
    """
    loss = loss or open_loss(settings.loss, settings.options)
    path = settings.output or unused_folder(loss.name)
    data = find_data(settings.data, loss)
    examples = read_examples(data, loss)
    backend = announce(settings)
    folder = RunFolder.create(path, overwrite=settings.overwrite)
    try:
        client = open_client(settings, backend, path)
        dataset = prepare(settings, loss, examples, client, folder, backend)
    except BaseException:
        folder.discard()  # it holds no run yet, and must not stand in the way of the next try
        raise
    description = describe_run(settings, loss, backend, data, dataset)
    folder.begin(description)
    runner = make_runner(settings, loss, client, dataset, folder, backend)
    return observe_and_run(runner, settings, backend, description)


def resume_run(path: Path) -> RunResult:
    """Continue the run in a folder from its last checkpoint.

    Raises:
        UserError: the folder holds no run or no checkpoint, or its data has changed.
        MintTrainError: a step failed.
    """
    folder = RunFolder(path)
    description = folder.read_description()
    checkpoint = folder.last_checkpoint()
    settings = restore_settings(description["settings"] | {"backend": description["backend"]})
    loss = open_loss(settings.loss, settings.options)
    data = find_data(settings.data, loss)
    if fingerprint(data) != description["data"]["sha256"]:
        raise UserError(f"{data} has changed since this run began; restore it, or start a new run")
    examples = read_examples(data, loss)
    backend = announce(settings)
    client = open_client(settings, backend, path)
    # the adapter is still the fresh one, so a reference that is not kept yet is the policy of the first step
    dataset = prepare(settings, loss, examples, client, folder, backend)
    client.load_state_with_optimizer(checkpoint.state).result()
    folder.keep_steps_until(checkpoint.step)
    click.echo(f"Resuming after step {checkpoint.step}.")
    runner = make_runner(settings, loss, client, dataset, folder, backend)
    runner.continue_from(checkpoint)
    folder.set_status("running")
    return observe_and_run(runner, settings, backend, description)


def prepare(
    settings: Settings,
    loss: Loss,
    examples: Sequence[Example],
    client: TrainingClient,
    folder: RunFolder,
    backend: str,
) -> Dataset:
    """Flatten and check the data, tell the user about it, and add the reference where the loss needs one."""
    dataset = build_dataset(examples, loss, client.get_tokenizer(), settings.max_length)
    reference = loss.reference
    if reference is not None:
        judge = client if reference == INITIAL else open_reference(settings, backend, reference, folder.path)
        groups = with_reference(dataset.groups, judge, reference, folder.path / REFERENCE_FILE)
        dataset = replace(dataset, groups=groups)
    describe_dataset(dataset, loss, settings)
    return dataset


def make_runner(
    settings: Settings, loss: Loss, client: TrainingClient, dataset: Dataset, folder: RunFolder, backend: str
) -> Runner:
    """Give the runner what it needs of the settings."""
    steps = count_steps(settings, len(dataset.groups))
    return Runner(
        loss=loss,
        client=client,
        groups=dataset.groups,
        folder=folder,
        steps=steps,
        batch_size=settings.batch_size,
        seed=settings.seed,
        adam_params=partial(adam_params, settings, steps),
        sampler_name=f"{file_name(loss.name)}-final",
        save_every=settings.save_every,
        # the embedded backend computes when it is asked, so there is nothing to run ahead of
        most_in_flight=1 if settings.pipeline and backend == "mint" else 0,
    )


def adam_params(settings: Settings, steps: int, step: int) -> types.AdamParams:
    """Return the optimiser's parameters of a step; what the settings leave out has the SDK's defaults."""
    return types.AdamParams(
        learning_rate=learning_rate(step, steps, settings.lr, settings.schedule, settings.warmup_steps),
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
    """Register the observers, tell them of the run, and run it."""
    runner.loss.manager.register(Console())
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
    runner.loss.hook.run_started(run=record)
    return runner.run()


def announce(settings: Settings) -> str:
    """Print which backend is taken, and why, before anything slow begins; return it."""
    backend, reason = choose_backend(settings)
    model = model_name(settings, backend)
    note = (
        "; it knows nothing, and is there to try a loss" if backend == "local" and not settings.model else ""
    )
    click.echo(f"Backend {backend} ({reason}), model {model}{note}.")
    return backend


def count_steps(settings: Settings, groups: int) -> int:
    """Return the steps of the run: as asked for, else one epoch of the user's data, else the default."""
    if settings.steps is not None:
        return settings.steps
    if settings.epochs is None and settings.data is None:
        return DEFAULT_STEPS
    return (settings.epochs or 1) * steps_per_epoch(groups, settings.batch_size)


def describe_dataset(dataset: Dataset, loss: Loss, settings: Settings) -> None:
    """Print what of the data is trained, what is left out, and what the loss remarks."""
    steps = count_steps(settings, len(dataset.groups))
    click.echo(f"{len(dataset.groups)} groups, {steps} steps of at most {settings.batch_size}.")
    if dataset.left_out:
        click.echo(f"Left out, as --max-length leaves nothing to train: {len(dataset.left_out)}")
        for line in dataset.left_out[:SHOWN_LEFT_OUT]:
            click.echo(f"  {line}")
        if len(dataset.left_out) > SHOWN_LEFT_OUT:
            click.echo(f"  ... and {len(dataset.left_out) - SHOWN_LEFT_OUT} more, listed in run.json")
    first = step_indices(1, len(dataset.groups), settings.batch_size, settings.seed)
    for remark in loss.remarks(Batch([dataset.groups[index] for index in first])):
        click.echo(remark)


def absolute_paths(settings: Settings) -> dict[str, str]:
    """Return the paths of the settings as they stand wherever the run is resumed from."""
    paths = {"data": settings.data, "model": Path(settings.model) if settings.model else None}
    return {name: str(path.resolve()) for name, path in paths.items() if path is not None and path.exists()}


def describe_run(
    settings: Settings, loss: Loss, backend: str, data: Path, dataset: Dataset
) -> dict[str, Any]:
    """Collect what `run.json` says of a run; secrets are no part of it."""
    return {
        "status": "running",
        "loss": loss.name,
        **loss.describe(),
        "backend": backend,
        "model": model_name(settings, backend),
        "steps": count_steps(settings, len(dataset.groups)),
        "settings": settings.public() | absolute_paths(settings),
        "data": {
            "path": str(data),
            "sha256": fingerprint(data),
            "groups": len(dataset.groups),
            "left_out": dataset.left_out,
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }
