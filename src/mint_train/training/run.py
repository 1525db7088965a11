"""A run, made once: what every part of it asks for its settings, its loss, its observers, its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mint_train.backends.base import Backend, TrainingClient
from mint_train.backends.choose import choose_backend
from mint_train.backends.start import find_start, load_start
from mint_train.groups.examples import Examples, find_data, read_examples
from mint_train.groups.held_out import find_held_out, split_examples
from mint_train.groups.located_reference import options_located, without_same_names
from mint_train.groups.vocabulary_needs import refuse_unmet_vocabulary
from mint_train.judging.judge import JudgeFunction
from mint_train.losses.loss import Loss
from mint_train.losses.recorded import (
    open_run_loss,
    refuse_other_loss,
    tell_changed_plugins,
)
from mint_train.losses.trust import check_address, check_loss_files, refuse_foreign
from mint_train.losses.weighted_sum import with_options
from mint_train.observers.registry import Observers, open_observers
from mint_train.plugins.authoring import FunctionLoss
from mint_train.rendering.options import refuse_changed_template
from mint_train.rows.mixture import Data
from mint_train.rows.readers import DataSource, waits_for_writer
from mint_train.run_folder.base_model import base_model_folder, refuse_changed, refuse_changed_models
from mint_train.run_folder.description import DataDescription, RunDescription, StartDescription
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.metric import Metric
from mint_train.run_folder.names import file_name, make_unused_folder
from mint_train.run_folder.records import Checkpoint
from mint_train.run_folder.samples import SAMPLE_SCORE, SCORE_METRIC
from mint_train.run_folder.token_counts import TokenCounts
from mint_train.settings.model import Settings
from mint_train.settings.prices import Prices
from mint_train.settings.recorded import change_settings, restore_settings
from mint_train.training.selecting import read_selection
from mint_train.training.watching import Watching


@dataclass(frozen=True)
class Program:
    """What a Python program that calls brings to a run."""

    loss: FunctionLoss | None = None
    """The loss, if it is one of the program's functions."""
    observers: Sequence[object] = ()
    judge: JudgeFunction | None = None
    """The judge, if it is one of the program's functions."""


@dataclass(frozen=True)
class Run:
    """One run, new or resumed, before anything is computed."""

    settings: Settings
    loss: Loss
    observers: Observers
    backend: Backend
    folder: RunFolder
    examples: Examples
    """The rows to train on."""
    held_out: Mapping[str, Examples]
    """The rows to evaluate on, by the name of their set, which is "" for a set without a name."""
    watching: Watching | None = None
    """The prompts that are completed as it trains."""
    start_from: StartDescription | None = None
    """The adapter that the run begins with; None for a fresh one."""
    recorded: RunDescription | None = None
    """What `run.json` said when the run was resumed; None for a new run."""
    checkpoint: Checkpoint | None = None
    """Where a resumed run continues."""
    prices: Prices | None = None
    """Those of `--price-file`."""
    counts: TokenCounts = field(default_factory=TokenCounts)
    """The tokens that it has sent, those before a resume too."""

    @classmethod
    @contextmanager
    def start(cls, settings: Settings, loss: Loss, program: Program | None = None) -> Iterator[Run]:
        """Yield a new run, whose folder is locked and is removed again if the run never begins.

        Args:
            settings: those of the run.
            loss: the loss that they name.
            program: the Python program that calls; None for the command line.

        Raises:
            UserError: the data, a row, an observer or the folder is wrong.
        """
        settings, start_from = find_start(settings)
        prices = read_prices(settings)
        with open_observers(settings, loss, *programs_observers(settings, program)) as observers:
            sources = open_sources(settings, loss, observers)
            examples, held_out = read_sources(settings, loss, *sources)
            watching = Watching.of(settings, program.judge if program else None)
            backend = choose_and_announce(settings, loss, observers)
            settings, loss = locate_reference(settings, loss, backend)
            path, made = settings.output, settings.output is None
            path = path or make_unused_folder(loss.name)
            with RunFolder.create(path, overwrite=settings.overwrite, made=made) as folder:
                run = cls(settings, loss, observers, backend, folder, examples, held_out, watching)
                yield replace(run, start_from=start_from, prices=prices, counts=TokenCounts(path))

    @classmethod
    @contextmanager
    def resume(
        cls,
        path: Path,
        given: Mapping[str, Any],
        program: Program | None = None,
        *,
        trust_loss: bool = False,
    ) -> Iterator[Run]:
        """Yield the run of a folder, which is locked, to continue it from its last checkpoint.

        Args:
            path: the run folder.
            given: settings to change.
            program: the Python program that calls; None for the command line.
            trust_loss: run a loss file that is not one of the current folder's own.

        Raises:
            UserError: the folder holds no run or is in use, or its data or a decisive setting has changed.
        """
        folder = RunFolder(path)
        folder.read_description()  # before the lock, which would create the folder
        with folder:
            recorded = folder.read_description()
            before = restore_settings(recorded.settings | {"backend": recorded.backend}, path)
            check_address(before, given.get("base_url"))
            check_loss_files(before.loss, recorded.loss_files, path, trust_loss=trust_loss)
            function = program.loss if program else None
            opened = partial(open_run_loss, recorded, path, function=function, trust_loss=trust_loss)
            options = without_same_names(given.get("options") or {}, opened(before))
            settings = change_settings(before, {**given, "options": options})
            loss = opened(settings)
            refuse_other_loss(recorded, loss, settings.options)
            with open_observers(settings, loss, *programs_observers(settings, program)) as observers:
                tell_changed_plugins(recorded, loss, observers.warn)
                checkpoint = folder.last_checkpoint()
                sources = open_sources(settings, loss, observers)
                refuse_changed_data(recorded.data, *sources)
                refuse_changed_template(recorded, settings)
                refuse_changed_models(recorded, base_model_folder(settings, path), loss.reference)
                examples, held_out = read_sources(settings, loss, *sources)
                watching = watch_again(recorded, settings, path, program, trusted=trust_loss)
                backend = choose_and_announce(settings, loss, observers, "as when the run began")
                run = cls(settings, loss, observers, backend, folder, examples, held_out, watching)
                run = replace(run, start_from=recorded.start, recorded=recorded, checkpoint=checkpoint)
                yield replace(run, prices=read_prices(settings), counts=TokenCounts(path))

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """What is known of the run's metrics: what the loss says of its own, and the score of samples."""
        judged = self.watching is not None and self.watching.judge is not None
        return {**self.loss.metrics, **({SAMPLE_SCORE: SCORE_METRIC} if judged else {})}

    @property
    def sampler_name(self) -> str:
        """The name of the trained weights."""
        return f"{file_name(self.loss.name)}-final"

    def open_client(self, *, at_start: bool = True) -> TrainingClient:
        """Open a training client with the adapter that the run begins with, or else with a fresh one."""
        client = self.backend.open_client(self.folder.path, self.observers.warn)
        if at_start and self.start_from is not None:
            load_start(client, self.start_from)
        return client


def read_prices(settings: Settings) -> Prices | None:
    """Return the prices of `--price-file`, if it is given.

    Raises:
        OptionError: the file cannot be read, or is wrong.
    """
    return None if settings.price_file is None else Prices.read(settings.price_file)


def programs_observers(settings: Settings, program: Program | None) -> tuple[bool, Sequence[object]]:
    """Return whether a run prints nothing at all, and which observers a program brings.

    With `--quiet` the command line still prints where the results are; a Python program gets them returned.
    """
    if program is None:
        return False, ()
    return settings.progress == "quiet", program.observers


def open_sources(settings: Settings, loss: Loss, observers: Observers) -> tuple[Data, dict[str, DataSource]]:
    """Open the training data and the files of held-out rows, each once."""
    for item in (*settings.data, *settings.eval_data.values()):
        if item.rows is None and waits_for_writer(item.name):
            observers.notice(f"Reading the pipe {item.name} until its writer closes it ...")
    return find_data(settings.data, loss, settings.max_row_bytes), find_held_out(settings)


def read_sources(
    settings: Settings, loss: Loss, data: Data, eval_data: Mapping[str, DataSource]
) -> tuple[Examples, dict[str, Examples]]:
    """Read the rows to train on and those held out."""
    examples = read_examples(data, loss, settings.columns, settings.on_bad_row)
    examples, held_out = split_examples(settings, loss, examples, eval_data)
    read_selection(settings, loss.metrics, list(held_out))  # refused before anything is computed
    return examples, held_out


def choose_and_announce(settings: Settings, loss: Loss, observers: Observers, why: str = "") -> Backend:
    """Choose the backend, and tell the user which one and why before anything slow begins.

    Args:
        settings: they name the backend, or leave it to the environment.
        loss: the loss that is trained.
        observers: they tell the user.
        why: the reason that the user is told; by default the backend's own.

    Raises:
        OptionError: the loss needs what this backend does not give.
    """
    backend = choose_backend(settings)
    refuse_unmet_vocabulary(loss, backend)
    processes = f", {backend.processes} processes" if backend.processes > 1 else ""
    observers.notice(f"Backend {backend.name} ({why or backend.reason}), model: {backend.model}{processes}.")
    return backend


def locate_reference(settings: Settings, loss: Loss, backend: Backend) -> tuple[Settings, Loss]:
    """Return the settings and the loss with a name of the reference by which it is found again."""
    changed = options_located(loss, backend)
    if not changed:
        return settings, loss
    settings = settings.model_copy(update={"options": {**settings.options, **changed}})
    return settings, with_options(loss, settings.options)


def refuse_changed_data(recorded: DataDescription, data: Data, eval_data: Mapping[str, DataSource]) -> None:
    """Refuse data that has changed since a run began.

    Raises:
        UserError: the training or the evaluations could not be compared with what came before.
    """
    pairs = [*zip(data.parts, (source.sha256 for source in recorded.sources), strict=True)]
    pairs += [(eval_data[held.name], held.sha256) for held in recorded.held_out if held.name in eval_data]
    for source, digest in pairs:
        refuse_changed(source, digest, source.fingerprint())


def watch_again(
    recorded: RunDescription,
    settings: Settings,
    path: Path,
    program: Program | None,
    *,
    trusted: bool,
) -> Watching | None:
    """Read the prompts of `--sample-prompts` of a resumed run, and open its judge.

    Raises:
        OptionError: the judge would run a file, or ask an address, that is not plainly the user's own.
        UserError: the prompts or the judge have changed, so that what they give could not be compared.
    """
    for value in settings.judge_options.values():
        refuse_foreign(str(value), path, trusted=trusted)
    watching = Watching.of(settings, program.judge if program else None)
    if watching is not None:
        refuse_changed(settings.sample_prompts, recorded.sample_prompts, watching.prompts.sha256)
    versions = watching.judge.versions if watching is not None and watching.judge is not None else {}
    for name, before in recorded.judge_versions.items():
        refuse_changed(name, before, versions.get(name))
    return watching
