"""`mint-train export`."""

from __future__ import annotations

from pathlib import Path

import click

from mint_train.cli.options import Command, checkpoint_option


@click.command(cls=Command, short_help="Copy a run's adapter, or write the merged model.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--merge", is_flag=True, help="Add the adapter to the base model's weights.")
@checkpoint_option
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder to write; by default one beside RUN.",
)
@click.option(
    "--check/--no-check",
    default=True,
    help="Compare the logprobs of a merged model, or of a service's adapter, with the policy's.",
    show_default=True,
)
def export(run: Path, merge: bool, step: int | str | None, output: Path | None, check: bool) -> None:
    """Copy the adapter of the run in the folder RUN, or write the merged model, with a model card.

    The adapter of a run on a service is downloaded from it.
    """
    from mint_train.cli.export import print_exported
    from mint_train.trained.export import export_run

    print_exported(export_run(run, output, step=step, merge=merge, check=check), merge=merge)
