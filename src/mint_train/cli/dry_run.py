"""`mint-train --dry-run`: the data of a run, inspected and shown."""

from __future__ import annotations

import click

from mint_train.backends.choose import choose_backend
from mint_train.cli.dry_run_report import print_report
from mint_train.errors import USER_MISTAKE
from mint_train.groups.inspection import inspect_data
from mint_train.losses.weighted_sum import open_loss
from mint_train.settings.model import Settings


def look_at_data(settings: Settings) -> int:
    """Inspect the data of a run and print what there is to know of it; return the exit status.

    Raises:
        UserError: the data or the tokenizer cannot be read at all.
    """
    loss = open_loss(settings.loss, settings.options)
    tokenizer = choose_backend(settings).tokenizer()
    report = inspect_data(settings, loss, tokenizer)
    print_report(report, tokenizer)
    stopping = report.problems if settings.on_bad_row == "fail" else len(report.broken)
    if not stopping:
        return 0
    advice = "; --on-bad-row skip leaves out those that cannot be read" if report.bad_rows else ""
    click.echo(f"mint-train: {stopping} rows would stop this run{advice}", err=True)
    return USER_MISTAKE
