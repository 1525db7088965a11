"""`mint-train losses`."""

from __future__ import annotations

import click

from mint_train.cli.options import Command
from mint_train.observers.terminal import echo


@click.command(cls=Command, short_help="List the installed losses.")
def losses() -> None:
    """List the installed losses by distribution, with a line on each."""
    from mint_train.cli.listing import losses_text

    echo(losses_text())
