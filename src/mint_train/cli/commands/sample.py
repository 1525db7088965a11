"""`mint-train sample`."""

from __future__ import annotations

from typing import Any

import click

from mint_train.cli.options import (
    Command,
    checkpoint_option,
    complete_folder,
    drawing_options,
    settings_options,
)
from mint_train.cli.start_up import load_libraries
from mint_train.errors import OptionError
from mint_train.settings.sampling import SHOWN

SAMPLE_SETTINGS = (
    *("loss", "model", "rank", "base_url"),
    *("special_tokens", "render", "chat_template", "chat_template_kwargs"),
)


@click.command(cls=Command, short_help="Show completions before and after training.")
@click.argument("name", metavar="RUN_OR_CHECKPOINT", shell_complete=complete_folder)
@click.option("--prompt", metavar="TEXT", help="A user's message to complete.")
@click.option("--data", metavar="PATH", help="Rows with prompts; by default the run's.")
@click.option("--rows", type=click.IntRange(min=1), default=4, show_default=True, help="Number of prompts.")
@checkpoint_option
@click.option(
    "-n",
    "samples",
    type=click.IntRange(min=1),
    default=SHOWN.samples,
    show_default=True,
    help="Completions per prompt.",
)
@click.option("--trust-loss", is_flag=True, help="Run a loss file that RUN names outside the current folder.")
def sample(
    name: str,
    prompt: str | None,
    data: str | None,
    rows: int,
    step: int | str | None,
    *,
    trust_loss: bool,
    **given: Any,
) -> None:
    """Show completions from before and after training, side by side.

    RUN_OR_CHECKPOINT is a run folder (RUN, RUN@STEP or RUN@best), a checkpoint in one, or a tinker:// path.
    """
    load_libraries("Loading torch, transformers and the run's loss ...")
    from mint_train.cli.sample import print_side_by_side
    from mint_train.trained.find import find_trained
    from mint_train.trained.sample import complete

    if prompt is not None and data is not None:
        raise OptionError("--prompt and --data are both given; give one of them")
    settings = {setting: given[setting] for setting in SAMPLE_SETTINGS}
    trained = find_trained(name, step, settings, trust_loss=trust_loss)
    prompts = None if prompt is None else [prompt]
    print_side_by_side(complete(trained, prompts, data, rows, SHOWN.with_given(given)))


sample.params += drawing_options(SHOWN)
settings_options(sample, SAMPLE_SETTINGS, others=False)
