"""The commands as functions, for a program or a notebook; `mint_train` offers each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypedDict, Unpack

from mint_train.backends.base import Sampling
from mint_train.errors import MintTrainError, OptionError
from mint_train.losses.loss import Loss
from mint_train.losses.weighted_sum import open_loss
from mint_train.plugins.authoring import FunctionLoss
from mint_train.plugins.functions import named_function
from mint_train.report.comparison import Comparison, check_distinct, eval_share
from mint_train.report.notebook import ShownResult
from mint_train.report.plots import plot_runs, report_path
from mint_train.run_folder.names import file_name, make_unused_folder
from mint_train.run_folder.records import HeldOut, RunResult
from mint_train.settings.keywords import PolicyKeywords, SettingsKeywords, in_python
from mint_train.settings.merge import load_settings
from mint_train.settings.model import Settings
from mint_train.trained.evaluate import evaluate_trained
from mint_train.trained.export import Exported, export_run
from mint_train.trained.find import find_trained
from mint_train.trained.sample import Completed, complete
from mint_train.training.run import Program
from mint_train.training.training import resume_run, start_run


def train(
    loss: str | FunctionLoss,
    *,
    options: Mapping[str, Any] | None = None,
    observers: Sequence[object] = (),
    resume: str | Path | None = None,
    **settings: Unpack[SettingsKeywords],
) -> RunResult:
    """Train from Python: the same run as `mint-train --loss ...`, with the same settings by name.

    Args:
        loss: the name of an installed loss, the path of a loss file, or a function under `@mint_train.loss`.
        options: the loss's options.
        observers: objects with some of the observers' hooks, marked with `@mint_train.hookimpl`.
        resume: a run folder to continue instead, as `mint_train.resume` does.
        settings: fields of `mint_train.settings.model.Settings`, such as `data`, `steps`, `lr`, `output`;
            with `progress="quiet"` nothing is printed. `data` is a file, rows (a list of dictionaries, an
            iterable, a `datasets.Dataset`, a frame of pandas or polars, a table of Arrow), or a list of
            files and of pairs with a weight, `[("a.jsonl", 0.7), (rows, 0.3)]`; `eval_data` a file, rows, or
            a dictionary of them by the name of the held-out set.

    Raises:
        MintTrainError: as the command line prints it, with keywords in place of options.

    Example:
        >>> result = train("dpo", data="pairs.jsonl", eval_fraction=0.2, options={"beta": 0.5})
        >>> result.held_out.metrics["pair_accuracy"]
        0.75
    """
    function = None if isinstance(loss, str) else loss
    name = loss if isinstance(loss, str) else loss.__name__
    program = Program(function, observers)
    with in_python():
        if resume is not None:
            given = {**settings, "options": dict(options or {}), "loss": name}
            return shown(resume_run(Path(resume), given, program))
        loaded, opened = opened_loss(loss, options, settings)
        return shown(start_run(loaded, opened, program))


def shown(result: RunResult) -> RunResult:
    """Return a result that a notebook shows with its curves."""
    return ShownResult(**{field.name: getattr(result, field.name) for field in fields(result)})


def opened_loss(
    loss: str | FunctionLoss, options: Mapping[str, Any] | None, settings: SettingsKeywords
) -> tuple[Settings, Loss]:
    """Return the settings of a new run and its loss.

    Raises:
        UserError: a setting, an option or the loss is wrong.
    """
    name = loss if isinstance(loss, str) else loss.__name__
    loaded = load_settings({**settings, "options": dict(options or {}), "loss": name})
    if isinstance(loss, str):
        return loaded, open_loss(loaded.loss, loaded.options)
    return loaded, Loss.of(named_function(loss), loaded.options)


def resume(
    run: str | Path,
    *,
    loss: FunctionLoss | None = None,
    observers: Sequence[object] = (),
    trust_loss: bool = False,
    **settings: Unpack[SettingsKeywords],
) -> RunResult:
    """Continue a run from its last checkpoint, as `mint-train resume` does.

    Args:
        run: the run folder.
        loss: the function that it was trained with, if that is one of this program's.
        observers: as for `train`.
        trust_loss: run a loss file that is not one of the current folder's own.
        settings: those to change; only some may.

    Raises:
        MintTrainError: there is nothing to continue, or a setting would make it a different run.
    """
    with in_python():
        return shown(resume_run(Path(run), settings, Program(loss, observers), trust_loss=trust_loss))


def evaluate(
    run: str | Path,
    data: Any = None,
    *,
    step: int | str | None = None,
    loss: str | FunctionLoss | None = None,
    options: Mapping[str, Any] | None = None,
    **settings: Unpack[PolicyKeywords],
) -> HeldOut:
    """Evaluate a run or a checkpoint on held-out rows, as `mint-train eval` does.

    Args:
        run: a run folder, a checkpoint in one, or the path of a saved state on the service.
        data: held-out rows, or named sets of them, as `eval_data` takes them; by default the run's.
        step: a checkpoint of the run, "best" or "last"; by default the best by `select_by`, else the last.
        loss: another loss, or the function that the run was trained with.
        options: of the loss.
        settings: those that are to differ from the run's, such as `batch_size`.

    Returns:
        By the name of the held-out set its evaluation; `.metrics` and `.intervals` where there is one set.

    Raises:
        MintTrainError: the run or the data is wrong, or the backend fails.
    """
    given: dict[str, Any] = {**settings, "options": None if options is None else dict(options)}
    if isinstance(loss, str):
        given["loss"] = loss
    with in_python():
        function = None if isinstance(loss, str) else loss
        trained = find_trained(str(run), step, given, loss=function)
        return HeldOut(found.evaluation for found in evaluate_trained(trained, data))


class Drawn(TypedDict, total=False):
    """How completions are drawn; see `mint_train.backends.base.Sampling`."""

    samples: int
    max_tokens: int
    temperature: float
    seed: int


def sample(
    run: str | Path,
    prompts: str | Sequence[str] | None = None,
    *,
    data: Any = None,
    rows: int = 4,
    step: int | str | None = None,
    loss: FunctionLoss | None = None,
    **drawn: Unpack[Drawn],
) -> list[Completed]:
    """Complete prompts before and after training, as `mint-train sample` does.

    Args:
        run: a run folder, or a checkpoint in one.
        prompts: one text of a user's turn, or several; by default those of the run's rows.
        data: rows whose prompts are completed instead.
        rows: the maximum number of prompts from rows.
        step: a checkpoint of the run, "best" or "last"; by default the best by `select_by`, else the last.
        loss: the function that the run was trained with, if that is one of this program's.
        drawn: `samples` per prompt, `max_tokens`, `temperature`, `seed`.

    Raises:
        MintTrainError: the run or the data is wrong, or the backend fails.
    """
    with in_python():
        if prompts is not None and data is not None:
            raise OptionError("prompts and data are both given; give one of them")
        texts = [prompts] if isinstance(prompts, str) else prompts
        trained = find_trained(str(run), step, {}, loss=loss)
        return complete(trained, texts, data, rows, Sampling(**drawn))


def compare(
    losses: Sequence[str | FunctionLoss],
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    observers: Sequence[object] = (),
    **settings: Unpack[SettingsKeywords],
) -> Comparison:
    """Train several losses on the same rows, one after another, and evaluate each on the same held-out rows.

    Args:
        losses: names, loss files, or functions under `@mint_train.loss`.
        options: the options of each loss, by its name.
        observers: as for `train`; each hears every run.
        settings: of every run. `output` is the folder for the runs, each in a folder named by its loss;
            without `eval_data` or `eval_fraction`, a tenth of the rows is held out.

    Returns:
        By loss how its run ended. A run that fails does not stop the others, an interrupted one does.

    Raises:
        UserError: a loss, an option or a setting is wrong; nothing has been started.
    """
    by_name = {loss if isinstance(loss, str) else loss.__name__: loss for loss in losses}
    results: dict[str, RunResult] = {}
    with in_python():
        check_distinct([loss if isinstance(loss, str) else loss.__name__ for loss in losses])
        if strange := (options or {}).keys() - by_name.keys():
            raise OptionError(f"options: {min(strange)} is none of the losses {', '.join(by_name)}")
        chosen = {
            name: opened_loss(loss, (options or {}).get(name), settings) for name, loss in by_name.items()
        }
        folder = Path(settings.get("output") or make_unused_folder("compare"))
        for name, (loaded, opened) in chosen.items():
            own = folder / file_name(name)
            loaded = loaded.model_copy(update={**eval_share(loaded), "output": own})
            try:
                results[name] = start_run(loaded, opened, Program(observers=observers))
            except MintTrainError as error:
                results[name] = RunResult("failed", own, 0, {}, None, str(error))
            if results[name].status == "interrupted":
                break
        return Comparison(results, {name: opened.metrics for name, (_, opened) in chosen.items()}, folder)


def plot(*runs: str | Path, output: str | Path | None = None) -> tuple[Path, Path]:
    """Draw runs as a PNG picture and an HTML page, as `mint-train plot` does, and return the two files.

    Args:
        runs: run folders, finished or not.
        output: where to write; its suffix is replaced by .png and .html. By default `report` in the run's
            folder, or in the current folder for several runs.

    Raises:
        MintTrainError: a folder does not hold a run, or matplotlib is not installed.
    """
    with in_python():
        folders = [Path(run) for run in runs]
        if not folders:
            raise OptionError("no run is named: plot(RUN, ...)")
        return plot_runs(folders, report_path(folders) if output is None else Path(output))


def export(
    run: str | Path,
    output: str | Path | None = None,
    *,
    step: int | str | None = None,
    merge: bool = False,
    check: bool = True,
) -> Exported:
    """Copy a run's adapter, or write the merged model, with a model card, as `mint-train export` does.

    Args:
        run: the run folder.
        output: the folder to write; by default one beside the run's.
        step: a checkpoint of the run, "best" or "last"; by default its result.
        merge: add the adapter to the base model's weights.
        check: compute the logprobs of a merged model, or of an adapter that a service sent, and compare.

    Raises:
        MintTrainError: the run has no weights, the service does not give them away, the folder is in use, or
            what was written is not the policy.
    """
    with in_python():
        folder = None if output is None else Path(output)
        return export_run(Path(run), folder, step=step, merge=merge, check=check)
