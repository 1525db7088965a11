"""`mint-train check`."""

from __future__ import annotations

from pathlib import Path

import click

from mint_train.cli.options import Command, complete_loss, complete_option, parse_assignments
from mint_train.errors import RUN_FAILED


@click.command(cls=Command, short_help="Check that a loss fulfils the plugin contract.")
@click.argument("name", shell_complete=complete_loss)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the loss.",
    shell_complete=complete_option,
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Rows to check it with; by default its bundled ones.",
)
@click.pass_context
def check(ctx: click.Context, name: str, assignments: tuple[str, ...], data: Path | None) -> None:
    """Check that a loss, installed or in a file, fulfils the plugin contract. No model is needed."""
    from mint_train.cli.check import check_and_print

    passed = check_and_print(name, parse_assignments(assignments), data)
    ctx.exit(0 if passed else RUN_FAILED)
