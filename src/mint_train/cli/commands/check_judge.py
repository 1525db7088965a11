"""`mint-train check-judge`."""

from __future__ import annotations

from pathlib import Path

import click

from mint_train.cli.options import Command, parse_assignments
from mint_train.errors import RUN_FAILED


@click.command("check-judge", cls=Command, short_help="Check that a judge fulfils the plugin contract.")
@click.argument("name")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="An option of the judge.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Rows to check it with, each with a prompt and completions; by default bundled ones.",
)
@click.pass_context
def check_judge(ctx: click.Context, name: str, assignments: tuple[str, ...], data: Path | None) -> None:
    """Check that an installed judge fulfils the plugin contract.

    Neither the order of the completions nor the other prompts of a batch may change a score.
    """
    from mint_train.cli.check import check_judge_and_print

    if not check_judge_and_print(name, parse_assignments(assignments), data):
        ctx.exit(RUN_FAILED)
