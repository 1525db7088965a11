"""`mint-train new`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from mint_train.cli.options import Command
from mint_train.observers.terminal import echo


@click.command(cls=Command, short_help="Write a loss plugin as a start for your own.")
@click.argument("name")
@click.option(
    "--folder", type=click.Path(path_type=Path), metavar="DIR", help="Folder to create; by default NAME."
)
def new(name: str, folder: Path | None) -> None:
    """Write a complete plugin distribution with a loss called NAME, as a start for your own.

    The distribution has that name too. With NAME mint-train-drafts it has the loss drafts.
    """
    from mint_train.plugins.scaffold import loss_of, new_loss

    written = new_loss(name, folder)
    install = f"pip install -e {shlex.quote(str(written))}"
    echo(f"Wrote {written}. Next: {install}, then mint-train check {loss_of(name)}")
