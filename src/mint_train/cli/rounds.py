"""`--rounds`: the options that it has alone, and what is shown of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mint_train.backends.ranks import refuse_several_processes
from mint_train.cli.options import metavar
from mint_train.errors import InterruptedCommandError, command_line
from mint_train.settings.model import Settings, option_name
from mint_train.settings.rounds import ONLY_ROUNDS, RoundsSettings

METAVARS = {"prompts": "FILE", "pair": "CHOICE", "mix_previous": "SHARE"}


def rounds_options(command: click.Command) -> click.Command:
    """Give the program the options that only `--rounds` has; the settings model checks the values."""
    for name, field in RoundsSettings.model_fields.items():
        if name in ONLY_ROUNDS:
            default = "" if field.default is None else f"  [default: {field.default}]"
            command.params.append(
                click.Option(
                    [option_name(name), name],
                    metavar=METAVARS.get(name) or metavar(field.annotation),
                    help=f"{field.description}{default}",
                )
            )
    return command


def begin_rounds(settings: Settings, asked: RoundsSettings) -> str:
    """Begin rounds and train them; return how the last one ended.

    Raises:
        MintTrainError: what was given is wrong, or a round failed.
    """
    from mint_train.sampling.new_rounds import new_rounds
    from mint_train.sampling.round_plan import Plan

    return train_rounds(new_rounds(settings, Plan.of(asked, settings.seed)))


def resume_rounds(folder: Path, changed: Mapping[str, Any], *, trusted: bool) -> str | None:
    """Go on with the rounds of a folder and return how the last one ended; None where it holds none.

    Args:
        folder: what may hold rounds.
        changed: what the user would change; only `token_budget` may.
        trusted: files that the folder names may be run.

    Raises:
        OptionError: something is to be changed.
        MintTrainError: a round failed.
    """
    from mint_train.sampling.round_plan import holds_rounds, refuse_changes
    from mint_train.sampling.rounds import Rounds

    if not holds_rounds(folder):
        return None
    refuse_several_processes("--rounds")
    refuse_changes(folder, list(changed))
    budget = changed.get("token_budget")
    return train_rounds(Rounds.read(folder, trusted=trusted, token_budget=budget))


def train_rounds(rounds: Any) -> str:
    """Train rounds, and say where they are.

    Raises:
        InterruptedCommandError: they were interrupted while they sampled or judged.
        MintTrainError: a round failed.
    """
    from mint_train.observers.terminal import say
    from mint_train.sampling.shown_rounds import train_shown

    try:
        result = train_shown(rounds)
    except KeyboardInterrupt:
        command = command_line("resume", rounds.folder)
        raise InterruptedCommandError(f"interrupted; continue the rounds with: {command}") from None
    say(f"Rounds: {rounds.folder}", err=rounds.given.get("progress") == "json")
    return str(result.status)
