"""`mint-train eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mint_train.cli.options import (
    Command,
    checkpoint_option,
    complete_folder,
    parse_assignments,
    settings_options,
)
from mint_train.cli.start_up import load_libraries

EVAL_SETTINGS = (
    *("loss", "model", "rank", "batch_size", "max_length", "base_url"),
    *("special_tokens", "render", "chat_template", "chat_template_kwargs", "train_turns"),
)


@click.command("eval", cls=Command, short_help="Evaluate a run or a checkpoint on held-out rows.")
@click.argument("name", metavar="RUN_OR_CHECKPOINT", shell_complete=complete_folder)
@click.option(
    "--data",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Held-out rows; by default the run's. Repeatable with names.",
)
@checkpoint_option
@click.option(
    "--rows",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to write each row's own figures to.",
)
@click.option("--trust-loss", is_flag=True, help="Run a loss file that RUN names outside the current folder.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="An option of the loss.")
def evaluate(
    name: str,
    data: tuple[str, ...],
    step: int | str | None,
    rows: Path | None,
    assignments: tuple[str, ...],
    **given: Any,
) -> None:
    """Evaluate a trained policy on held-out rows: the loss's metrics with 95 % confidence intervals.

    RUN_OR_CHECKPOINT is a run folder (RUN, RUN@STEP or RUN@best), a checkpoint in one, or a tinker:// path
    of a saved state, which needs --loss. The settings below may differ from those of the run.
    """
    load_libraries("Loading torch, transformers and the run's loss ...")
    from mint_train.cli.evaluate import evaluate_and_print
    from mint_train.trained.find import find_trained

    if assignments:
        given["options"] = parse_assignments(assignments)
    evaluate_and_print(find_trained(name, step, given, trust_loss=given.pop("trust_loss")), data, rows)


settings_options(evaluate, EVAL_SETTINGS, others=False)
