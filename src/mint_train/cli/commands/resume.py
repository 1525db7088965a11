"""`mint-train resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mint_train.cli.options import Command, complete_folder, parse_assignments, settings_options
from mint_train.cli.rounds import resume_rounds
from mint_train.cli.start_up import load_libraries
from mint_train.errors import INTERRUPTED
from mint_train.settings.recorded import LENGTH, MAY_CHANGE


@click.command(cls=Command, short_help="Continue a run from its last checkpoint.")
@click.argument("run", type=click.Path(path_type=Path), shell_complete=complete_folder)
@click.option("--set", "assignments", multiple=True, hidden=True)
@click.option("--trust-loss", is_flag=True, help="Run a loss file that RUN names outside the current folder.")
@click.pass_context
def resume(
    ctx: click.Context, /, run: Path, assignments: tuple[str, ...], trust_loss: bool, **given: Any
) -> None:
    """Continue the run in the folder RUN from its last checkpoint, or the rounds in it.

    It keeps the settings that it was started with. Those below may be changed; --steps and --epochs only if
    the learning-rate schedule is constant.
    """
    load_libraries("Loading torch, transformers and the run's loss ...")
    from mint_train.training.training import resume_run

    changed = {name: value for name, value in given.items() if value is not None}
    changed |= dict.fromkeys(assignments)
    if (ended := resume_rounds(run, changed, trusted=trust_loss)) is not None:
        ctx.exit(INTERRUPTED if ended == "interrupted" else 0)
    result = resume_run(run, given | {"options": parse_assignments(assignments)}, trust_loss=trust_loss)
    ctx.exit(INTERRUPTED if result.status == "interrupted" else 0)


settings_options(resume, shown=MAY_CHANGE | LENGTH)
