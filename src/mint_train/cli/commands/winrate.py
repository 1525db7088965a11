"""`mint-train winrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mint_train.cli.commands.pairs import judge_and_sampling, policy_settings, sampling_options
from mint_train.cli.options import Command, complete_folder
from mint_train.cli.start_up import load_libraries


@click.command(cls=Command, short_help="Let a judge compare what two policies write.")
@click.argument("first", metavar="A", shell_complete=complete_folder)
@click.argument("second", metavar="B", shell_complete=complete_folder)
@click.option("--data", required=True, metavar="PROMPTS", help="Prompts that both complete.")
@click.option(
    "--samples", type=click.IntRange(min=1), default=1, show_default=True, help="Comparisons per prompt."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="JSON Lines file for each comparison.",
)
def winrate(first: str, second: str, data: str, samples: int, options: dict[str, Any], **given: Any) -> None:
    """Print how often A's completions beat B's, in both orders, with a 95 % interval.

    A and B are each a run (RUN or RUN@STEP), a state on the service, an adapter, or a base model. PROMPTS is
    anything that --data takes. A command that was stopped goes on where it was. Where A is a run, the page of
    `mint-train plot` shows the win rate too.
    """
    load_libraries("Loading torch, transformers and the policies ...")
    from mint_train.cli.winrate import compare_and_print
    from mint_train.sampling.matches import Comparing

    written = {part: given.pop(part) for part in ("output", "overwrite")}
    judge, sampling = judge_and_sampling(given, options, samples)
    comparing = Comparing(judge, sampling, **written)
    compare_and_print((first, second), data, policy_settings(given), comparing)


sampling_options(winrate)
