"""A run is made, prepared, and handed to the runner: for the command line and for Python alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mint_train.backends.closing import closed_on_failure
from mint_train.errors import BackendError, OptionError, ServiceError, UserError, counted
from mint_train.losses.loss import Loss
from mint_train.losses.weighted_sum import open_loss
from mint_train.observers.model_card import CardWriter
from mint_train.run_folder.files import copy_whole
from mint_train.run_folder.parts import CHECKPOINTS_FILE
from mint_train.run_folder.records import RunRecord, RunResult
from mint_train.settings.data_items import kept_file
from mint_train.settings.model import Settings
from mint_train.training.description import describe_run
from mint_train.training.preparing import Prepared, prepare
from mint_train.training.run import Program, Run
from mint_train.training.runner import Runner


def train_with(settings: Settings) -> RunResult:
    """Train as the command line does, with settings that name the loss.

    Raises:
        MintTrainError: what the user gave is wrong, or a step failed.
    """
    return start_run(settings, open_loss(settings.loss, settings.options))


def start_run(settings: Settings, loss: Loss, program: Program | None = None) -> RunResult:
    """Start a new run and train it to its end.

    Args:
        settings: those of the run.
        loss: the loss that they name.
        program: the Python program that calls; None for the command line.

    Raises:
        MintTrainError: what the user gave is wrong, or a step failed.
    """
    with Run.start(settings, loss, program) as run:
        try:
            prepared = prepare(run)
        except BaseException:
            run.folder.discard()  # it does not hold a run yet, and must not be in the way of the next attempt
            raise
        with runner_of(run, prepared) as runner:
            keep_given_rows(run)
            run.folder.begin(describe_run(run, prepared))
            return train_prepared(run, runner)


def keep_given_rows(run: Run) -> None:
    """Keep the rows that a program gave in the run's folder, so that later commands find them.

    Raises:
        MintTrainError: the disk refuses.
    """
    kept = [(item, part.data) for item, part in zip(run.settings.data, run.examples.parts, strict=False)]
    kept += [(item, run.held_out[name].parts[0].data) for name, item in run.settings.eval_data.items()]
    for item, source in kept:
        if item.rows is not None:
            copy_whole(source.shards[0], run.folder.path / kept_file(item))


def resume_run(
    path: Path,
    given: Mapping[str, Any] | None = None,
    program: Program | None = None,
    *,
    trust_loss: bool = False,
) -> RunResult:
    """Continue the run in a folder from its last checkpoint.

    Args:
        path: the run folder.
        given: settings to change, of those that do not make it a different run.
        program: the Python program that calls; None for the command line.
        trust_loss: run a loss file that is not one of the current folder's own.

    Raises:
        UserError: the folder does not hold a run or a checkpoint, is in use, or its data has changed; a
            changed setting would make it a different run.
        MintTrainError: a step failed.
    """
    with Run.resume(path, given or {}, program, trust_loss=trust_loss) as run:
        prepared = prepare(run)
        taken = run.checkpoint.step if run.checkpoint else 0
        with runner_of(run, prepared) as runner:
            if prepared.steps < taken:
                raise OptionError(
                    f"--steps {prepared.steps}: this run has already taken {counted(taken, 'step')}"
                )
            continue_from(run, runner)
            run.observers.notice(f"Resuming after step {taken}.")
            run.folder.write_description(describe_run(run, prepared))
            return train_prepared(run, runner)


@contextmanager
def runner_of(run: Run, prepared: Prepared) -> Iterator[Runner]:
    """Yield a run's runner, and close its sessions at the end: a service keeps a slot for each until then."""
    with prepared.ahead or nullcontext():
        with closed_on_failure(prepared.client):
            runner = Runner(run, prepared)
        try:
            yield runner
        finally:
            runner.client.close()  # another one after a roll back


def continue_from(run: Run, runner: Runner) -> None:
    """Load the checkpoint that a resumed run continues from.

    Raises:
        BackendError: it cannot be loaded; the message says how to continue from an earlier one.
        UserError: the service does not have it any more; the message says the same.
    """
    try:
        runner.continue_from(run.checkpoint)
    except ServiceError:
        raise
    except (BackendError, UserError) as error:
        raise type(error)(f"{error}{earlier_state(run)}") from error


def earlier_state(run: Run) -> str:
    """Say how to continue from the checkpoint before the last, or that there is none."""
    steps = sorted({saved.step for saved in run.folder.checkpoints()})[:-1]
    if not steps:
        return "; no earlier one is saved: start the run again"
    lines = run.folder.path / CHECKPOINTS_FILE
    return f"; to continue after step {steps[-1]} instead, delete what is behind it in {lines}"


def train_prepared(run: Run, runner: Runner) -> RunResult:
    """Announce a run to its observers, and train it to its end."""
    record = RunRecord(
        folder=run.folder.path,
        loss=run.loss.name,
        backend=run.backend.name,
        model=run.backend.model,
        steps=runner.steps,
        groups=len(runner.groups),
        metrics=run.metrics,
        description=run.folder.read_description(),
    )
    if not run.backend.remote:  # a path that a service names is none on this machine
        run.observers.add(CardWriter(run.folder))
    run.observers.hook.run_started(run=record)
    return runner.train()
