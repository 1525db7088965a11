"""`mint-train compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mint_train.cli.options import Command, complete_loss, parse_assignments, settings_options
from mint_train.cli.start_up import load_libraries
from mint_train.errors import INTERRUPTED, RUN_FAILED
from mint_train.settings.model import Settings

COMPARE_SETTINGS = Settings.model_fields.keys() - {"loss", "output"}


@click.command(cls=Command, short_help="Train several losses, compare them on held-out rows.")
@click.argument("losses", nargs=-1, required=True, metavar="LOSS...", shell_complete=complete_loss)
@click.option(
    "--set", "assignments", multiple=True, metavar="LOSS.KEY=VALUE", help="An option of one loss; repeatable."
)
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="TOML or YAML file.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for the runs; by default a new one in runs/.",
)
@click.pass_context
def compare(
    ctx: click.Context,
    /,
    losses: tuple[str, ...],
    assignments: tuple[str, ...],
    config: Path | None,
    output: Path | None,
    **given: Any,
) -> None:
    """Train several losses on the same rows and compare them on the same held-out rows.

    Each loss is a run of its own: in parallel on MinT, one after another on this machine. Without --eval-data
    or --eval-fraction, a tenth of the rows is held out.
    """
    load_libraries("Loading torch, transformers and the losses ...")
    from mint_train.cli.compare import compare_and_print

    done, interrupted = compare_and_print(losses, parse_assignments(assignments), config, output, given)
    ctx.exit(INTERRUPTED if interrupted else 0 if done else RUN_FAILED)


settings_options(compare, COMPARE_SETTINGS, others=False)
