"""`mint-train schema`."""

from __future__ import annotations

import click

from mint_train.cli.options import Command, complete_loss
from mint_train.observers.terminal import echo


@click.command(cls=Command, short_help="Print the JSON Schema of a config file.")
@click.option("--loss", metavar="NAME", help="Add the options of this loss.", shell_complete=complete_loss)
def schema(loss: str | None) -> None:
    """Print the JSON Schema of a config file, with which an editor checks and completes one."""
    import json

    from mint_train.settings.config_files import config_schema

    options = None
    if loss is not None:
        from mint_train.losses.weighted_sum import open_loss

        options = open_loss(loss, {}).options_model.model_json_schema()
    echo(json.dumps(config_schema(options), indent=2))
