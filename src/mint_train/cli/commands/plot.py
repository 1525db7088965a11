"""`mint-train plot`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mint_train.cli.options import Command
from mint_train.observers.terminal import echo


@click.command(cls=Command, short_help="Draw runs as a picture and an HTML page.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to write, as .png and .html; by default report in RUN, or in this folder for several runs.",
)
def plot(runs: tuple[Path, ...], output: Path | None) -> None:
    """Draw one or more runs as a PNG picture and an HTML page.

    RUN... are run folders, finished or not. The page holds curves, settings, data and final figures in one
    self-contained file.
    """
    if sys.stderr.isatty():
        echo("Drawing ...", err=True)
    from mint_train.report.plots import plot_runs, report_path

    for written in plot_runs(runs, output or report_path(runs)):
        echo(f"Wrote {written}")
