"""`mint-train completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from mint_train.cli.options import Command
from mint_train.errors import OptionError
from mint_train.observers.terminal import echo


@click.command(cls=Command, short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    Put `eval "$(mint-train completion bash)"` into the shell's start-up file.
    """
    complete = get_completion_class(shell)
    if complete is None:
        raise OptionError(f"{shell} has no completion here")
    echo(complete(ctx.find_root().command, {}, "mint-train", "_MINT_TRAIN_COMPLETE").source())
