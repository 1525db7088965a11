"""Runs from Python: training, resuming, evaluating, comparing, drawing and exporting them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Unpack, cast

from mint_train.api.arguments import (
    judge_by_name,
    loaded_settings,
    name_of,
    opened_loss,
    opened_losses,
    program_of,
    rounds_and_run,
)
from mint_train.backends.choose import choose_backend, model_at_commit
from mint_train.errors import MintTrainError, OptionError
from mint_train.losses.loss import Loss
from mint_train.plugins.authoring import FunctionLoss
from mint_train.report.comparison import Comparison, check_distinct, comparison_folder, eval_share
from mint_train.report.notebook import ShownResult
from mint_train.report.plots import plot_runs, report_path
from mint_train.run_folder.files import Place
from mint_train.run_folder.names import file_name
from mint_train.run_folder.records import HeldOut, RunResult
from mint_train.sampling.new_rounds import new_rounds
from mint_train.sampling.round_plan import Plan, holds_rounds, refuse_changes
from mint_train.sampling.rounds import Rounds, RoundsProgram
from mint_train.sampling.shown_rounds import train_shown
from mint_train.settings.data_items import read_once
from mint_train.settings.keywords import (
    PolicyKeywords,
    SettingsKeywords,
    TrainKeywords,
    in_python,
    plain_options,
)
from mint_train.settings.model import Settings
from mint_train.trained.evaluate import evaluate_trained
from mint_train.trained.export import Exported, export_run
from mint_train.trained.find import find_trained
from mint_train.training.run import Program, locate_reference
from mint_train.training.training import resume_run, start_run


def train(
    loss: str | FunctionLoss,
    *,
    options: Mapping[str, Any] | None = None,
    observers: Sequence[object] = (),
    resume: str | Path | None = None,
    **settings: Unpack[TrainKeywords],
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
            a dictionary of them by the name of the held-out set. With `rounds=N` there is no `data`:
            `prompts` are a file, rows, or texts, and `judge` is a name, or a function of a prompt and its
            completions that returns a score for each; see `mint_train.settings.rounds.RoundsSettings`.

    Returns:
        How the run ended; of rounds the last one's, with `rounds`, what each one's completions scored.

    Raises:
        MintTrainError: as the command line prints it, with keywords in place of options.

    Example:
        >>> result = train("dpo", data="pairs.jsonl", eval_fraction=0.2, options={"beta": 0.5})
        >>> result.held_out.metrics["pair_accuracy"]
        0.75
    """
    with in_python():
        asked, own = rounds_and_run(settings)
        program = program_of(loss, observers, settings)
        if resume is not None:
            given = {**own, "options": plain_options(options, "options"), "loss": name_of(loss)}
            return shown(resume_run(Path(resume), given, program))
        if asked is None:
            return shown(start_run(*opened_loss(loss, options, own), program))
        loaded = loaded_settings(loss, options, own)
        plan = Plan.of(asked, loaded.seed, judge_is_function=program.judge is not None)
        return shown(train_shown(new_rounds(loaded, plan, program)))


def shown(result: RunResult) -> RunResult:
    """Return a result that a notebook shows with its curves."""
    return ShownResult(**{field.name: getattr(result, field.name) for field in fields(result)})


def resume(
    run: str | Path,
    *,
    loss: FunctionLoss | None = None,
    observers: Sequence[object] = (),
    trust_loss: bool = False,
    **settings: Unpack[SettingsKeywords],
) -> RunResult:
    """Continue a run from its last checkpoint, or rounds, as `mint-train resume` does.

    Args:
        run: the run folder, or that of rounds.
        loss: the function that it was trained with, if that is one of this program's.
        observers: as for `train`.
        trust_loss: run a loss file that is not one of the current folder's own.
        settings: those to change; only some may. `judge` is the function that judges, if it is one of this
            program's.

    Raises:
        MintTrainError: there is nothing to continue, or a setting would make it a different run.
    """
    folder, judge = Path(run), settings.get("judge")
    judge = judge if callable(judge) else None
    with in_python():
        if holds_rounds(folder):
            refuse_changes(folder, [name for name in settings if name != "judge" or not judge])
            of_rounds, budget = RoundsProgram(loss, observers, judge), settings.get("token_budget")
            rounds = Rounds.read(folder, of_rounds, trusted=trust_loss, token_budget=budget)
            return shown(train_shown(rounds))
        program = Program(loss, observers, judge)
        return shown(resume_run(folder, judge_by_name(settings), program, trust_loss=trust_loss))


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
    with in_python():
        own = None if options is None else plain_options(options, "options")
        given: dict[str, Any] = {**settings, "options": own}
        if isinstance(loss, str):
            given["loss"] = loss
        function = None if isinstance(loss, str) else loss
        trained = find_trained(str(run), step, given, loss=function)
        return HeldOut(found.evaluation for found in evaluate_trained(trained, data))


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
    by_name = {name_of(loss): loss for loss in losses}
    results: dict[str, RunResult] = {}
    with in_python():
        check_distinct([name_of(loss) for loss in losses])
        settings = cast(SettingsKeywords, {**settings, **read_once(settings)})
        chosen = opened_losses(by_name, options or {}, settings)
        output, overwrite = settings.get("output"), bool(settings.get("overwrite"))
        place = Place(comparison_folder(Path(output) if output else None, chosen, overwrite=overwrite))
        chosen = of_one_commit(chosen)
        for name, (loaded, opened) in chosen.items():
            own = place.path / file_name(name)
            loaded = loaded.model_copy(update={**eval_share(loaded), "output": own})
            program = program_of(by_name[name], observers, settings)
            try:
                with in_python():  # the result keeps the error as text
                    results[name] = start_run(loaded, opened, program)
            except MintTrainError as error:
                results[name] = RunResult("failed", own, 0, {}, None, str(error))
            if results[name].status == "interrupted":
                break
        return Comparison(results, {name: opened.metrics for name, (_, opened) in chosen.items()}, place.path)


def of_one_commit(chosen: Mapping[str, tuple[Settings, Loss]]) -> dict[str, tuple[Settings, Loss]]:
    """Return the settings and losses of several runs, with the commits that models on the hub have now."""
    if not chosen:
        return {}
    shared, _ = next(iter(chosen.values()))
    backend = choose_backend(shared)
    model = model_at_commit(shared, backend)
    own = {name: (each.model_copy(update=model), loss) for name, (each, loss) in chosen.items()}
    return {name: locate_reference(*each, backend) for name, each in own.items()}


def plot(*runs: str | Path, output: str | Path | None = None) -> tuple[Path, Path]:
    """Draw runs as a PNG picture and an HTML page, as `mint-train plot` does, and return the two files.

    Args:
        runs: run folders, finished or not.
        output: where to write; .png and .html are added to it. By default `report` in the run's
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
    to: str | Sequence[str] = "peft",
    step: int | str | None = None,
    check: bool = True,
) -> Exported:
    """Write a run's adapter, its merged model, or that in GGUF, as `mint-train export` does.

    Args:
        run: the run folder.
        output: the folder to write; by default one beside the run's.
        to: "peft", "merged" or "gguf"; "hub:ORG/NAME" uploads the adapter, and ("gguf", "hub:ORG/NAME") that.
        step: a checkpoint of the run, "best" or "last"; by default its result.
        check: compute the logprobs of a model, or of an adapter that a service sent, and compare.

    Raises:
        MintTrainError: the run has no weights, the service does not give them away, the folder is in use, or
            what was written is not the policy.
    """
    with in_python():
        folder = None if output is None else Path(output)
        return export_run(Path(run), folder, to=to, step=step, check=check)
