"""`mint-train export`."""

from __future__ import annotations

from pathlib import Path

import click

from mint_train.cli.options import Command, checkpoint_option


@click.command(cls=Command, short_help="Write a run's adapter, its merged model, or that in GGUF.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--to",
    default=["peft"],
    multiple=True,
    metavar="peft|merged|gguf|hub:ORG/NAME",
    help="The adapter (the default), the model with the adapter added to it, or that as one file for "
    "llama.cpp and Ollama. With hub:ORG/NAME, alone or beside one of them, it is uploaded too.",
)
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
    help="Compare the logprobs of a model, or of a service's adapter, with the policy's.",
    show_default=True,
)
def export(run: Path, to: tuple[str, ...], step: int | str | None, output: Path | None, check: bool) -> None:
    """Write the weights of the run in the folder RUN, with a model card: its adapter, or a whole model.

    RUN@STEP and RUN@best name a checkpoint of it.
    The adapter of a run on a service is downloaded from it.
    """
    from mint_train.cli.export import print_exported
    from mint_train.trained.export import export_run

    print_exported(export_run(run, output, to=to, step=step, check=check))
