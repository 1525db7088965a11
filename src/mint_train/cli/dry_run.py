"""`mint-train --dry-run`: the data of a run, inspected and shown."""

from __future__ import annotations

from mint_train.backends.choose import choose_backend
from mint_train.cli.dry_run_events import print_events
from mint_train.cli.dry_run_report import print_report
from mint_train.errors import USER_MISTAKE, counted
from mint_train.groups.inspection import DataReport, inspect_data
from mint_train.groups.vocabulary_needs import refuse_unmet_vocabulary
from mint_train.losses.weighted_sum import open_loss
from mint_train.observers.terminal import echo, echo_problem
from mint_train.rows.readers import waits_for_writer
from mint_train.run_folder.token_counts import TokenCounts
from mint_train.settings.model import Settings
from mint_train.settings.prices import Prices
from mint_train.training.budget import TokenBudget


def inspect_and_print(settings: Settings, examples: int = 1) -> int:
    """Inspect the data of a run, print what there is to know of it, and return the command's exit status.

    Args:
        settings: those of the run.
        examples: how many rows to show whole.

    Raises:
        UserError: the data or the tokenizer cannot be read at all, the loss needs what the backend does not
            give, or the budget is not enough for a step.
    """
    loss = open_loss(settings.loss, settings.options)
    prices = None if settings.price_file is None else Prices.read(settings.price_file)
    backend = choose_backend(settings)
    refuse_unmet_vocabulary(loss, backend)
    tokenizer = backend.tokenizer()
    for item in settings.data:
        if waits_for_writer(item.name):
            echo(f"Reading the pipe {item.name} until its writer closes it ...", err=True)
    report = inspect_data(settings, loss, tokenizer, examples)
    if prices and report.expected:
        prices.require(report.expected.after(0))
    show = print_events if settings.progress == "json" else print_report
    show(report, tokenizer, prices)
    problem = what_stops(report, settings.on_bad_row == "fail")
    if problem:
        echo_problem(problem)
        return USER_MISTAKE
    if report.expected:
        TokenBudget(settings.token_budget, TokenCounts(), report.expected).refuse_no_step(0)
    return 0


def what_stops(report: DataReport, fail: bool) -> str:
    """Say what of the data would stop the run, or nothing.

    Args:
        report: what is in the data.
        fail: whether a bad row ends the run.
    """
    stopping = report.problems if fail else len(report.broken)
    if stopping:
        advice = "; --on-bad-row skip leaves out those that cannot be read" if report.bad_rows else ""
        return f"{counted(stopping, 'row')} would stop this run{advice}"
    if not report.groups:
        return "nothing is left to train, which would stop this run"
    if report.nothing_held_out:
        return "nothing is left of the held-out rows, which would stop this run"
    return next(iter(report.weightless_batches), "")
