"""`mint-train winrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mint_train.cli.commands.pairs import policy_settings, sampling_options
from mint_train.cli.options import Command, complete_folder
from mint_train.cli.start_up import load_libraries
from mint_train.settings.sampling import COMPARED


@click.command(cls=Command, short_help="Let a judge compare what two policies write.")
@click.argument("first", metavar="A", shell_complete=complete_folder)
@click.argument("second", metavar="B", shell_complete=complete_folder)
@click.option("--data", required=True, metavar="PROMPTS", help="Prompts that both complete.")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=COMPARED.samples,
    show_default=True,
    help="Comparisons per prompt.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="JSON Lines file for each comparison.",
)
def winrate(first: str, second: str, data: str, **given: Any) -> None:
    """Print how often A's completions beat B's, in both orders, with a 95 % interval.

    A and B are each a run (RUN, RUN@STEP or RUN@best), a state on the service, an adapter, or a base model.
    PROMPTS is anything that --data takes. A command that was stopped goes on where it was. Where A is a run,
    the page of `mint-train plot` shows the win rate too.
    """
    load_libraries("Loading torch, transformers and the policies ...")
    from mint_train.cli.winrate import compare_and_print
    from mint_train.judging.judge import open_judge
    from mint_train.sampling.matches import Comparing

    written = {part: given[part] for part in ("output", "overwrite")}
    judge = open_judge(given["judge"], given["options"], given["judge_timeout"])
    comparing = Comparing(judge, COMPARED.with_given(given), **written)
    compare_and_print((first, second), data, policy_settings(given), comparing)


sampling_options(winrate)
