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

    RUN... are run folders, finished or not. The picture has a panel for each metric that changes: a line of
    the training batches (bold: the running mean of a long run), and a diamond for each evaluation on held-out
    rows with its 95 % confidence interval. Several runs lie over one another.

    The page, one self-contained file, begins with the result in a sentence. Below the curves it shows the win
    rates that `mint-train winrate` measured, the completions of --sample-prompts as they changed, the rows
    held out that got better and worse, the final figures, and settings, data and versions.
    """
    if sys.stderr.isatty():
        echo("Drawing ...", err=True)
    from mint_train.report.plots import plot_runs, report_path

    for written in plot_runs(runs, output or report_path(runs)):
        echo(f"Wrote {written}")
