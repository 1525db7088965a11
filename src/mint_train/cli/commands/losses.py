"""`mint-train losses`."""

from __future__ import annotations

import click

from mint_train.cli.options import Command, complete_loss
from mint_train.observers.terminal import echo


@click.command(cls=Command, short_help="List the installed losses, or describe one.")
@click.argument("name", required=False, shell_complete=complete_loss)
def losses(name: str | None) -> None:
    """List the installed losses by distribution, with a line on each; or describe one in full."""
    if name is not None:
        from mint_train.cli.loss_details import loss_details

        echo(loss_details(name))
        return
    from mint_train.cli.listing import losses_text

    echo(losses_text())
