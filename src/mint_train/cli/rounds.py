"""`--rounds`: its options, and what is shown of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from mint_train.cli.options import parse_assignments
from mint_train.errors import OptionError

NEEDED = ("prompts", "judge")
DEFAULTS: dict[str, Any] = {
    "samples": 8,
    "max_tokens": 256,
    "temperature": 1.0,
    "take": "best-worst",
    "judge_timeout": 600.0,
    "mix_previous": 0.0,
    "judge_assignments": (),
}
"""What the options of rounds are where they are not given."""


def rounds_options(command: click.Command) -> click.Command:
    """Give the program the options of `--rounds`."""
    known: list[tuple[list[str], Any, str, str]] = [
        (["--rounds"], click.IntRange(min=1), "N", "Rounds of sampling, judging and training."),
        (["--prompts"], str, "FILE", "With --rounds: the prompts that are completed in each."),
        (["--judge"], str, "NAME", "With --rounds: the judge, an installed plugin."),
        (["--samples"], click.IntRange(min=2), "N", "With --rounds: completions per prompt; 8 by default."),
        (["--max-tokens"], click.IntRange(min=1), "N", "With --rounds: tokens of each; 256 by default."),
        (["--temperature"], click.FloatRange(min=0), "NUMBER", "With --rounds: 1 by default."),
        (["--pair", "take"], str, "CHOICE", "With --rounds: which completions; see `mint-train pairs`."),
        (["--judge-timeout"], click.FloatRange(min=0, min_open=True), "SECONDS", "With --rounds."),
        (
            ["--mix-previous"],
            click.FloatRange(min=0, max=1, max_open=True),
            "SHARE",
            "With --rounds: share of an epoch that rows of earlier rounds have.",
        ),
    ]
    command.params += [
        click.Option(names, type=kind, metavar=metavar, help=text) for names, kind, metavar, text in known
    ]
    command.params.append(
        click.Option(
            ["--judge-set", "judge_assignments"],
            multiple=True,
            metavar="KEY=VALUE",
            help="With --rounds: an option of the judge; repeatable.",
        )
    )
    return command


def take_rounds(given: dict[str, Any]) -> dict[str, Any] | None:
    """Remove the options of rounds from what was given, and return them; None without `--rounds`.

    Raises:
        OptionError: `--rounds` lacks its prompts or its judge, or another option stands without it.
    """
    rounds = given.pop("rounds")
    asked = {name: given.pop(name) for name in (*NEEDED, *DEFAULTS)}
    if rounds is None:
        for name, value in asked.items():
            if value not in (None, ()):
                option = {"take": "pair", "judge_assignments": "judge-set"}.get(name, name.replace("_", "-"))
                raise OptionError(f"--{option} is for --rounds N, which is not given")
        return None
    for name in NEEDED:
        if asked[name] is None:
            raise OptionError(f"--rounds needs --{name}")
    return {"rounds": rounds} | {
        name: DEFAULTS.get(name) if value is None else value for name, value in asked.items()
    }


def begin_rounds(settings: Any, asked: dict[str, Any]) -> str:
    """Begin rounds and train them; return how the last one ended.

    Raises:
        MintTrainError: what was given is wrong, or a round failed.
    """
    from mint_train.backends.base import Sampling
    from mint_train.sampling.rounds import Plan, Rounds

    plan = Plan(
        rounds=asked["rounds"],
        prompts=asked["prompts"],
        judge=asked["judge"],
        judge_options=parse_assignments(asked["judge_assignments"]),
        judge_timeout=asked["judge_timeout"],
        sampling=Sampling(asked["samples"], asked["max_tokens"], asked["temperature"], settings.seed),
        writer="pair",
        writer_options={"take": asked["take"]},
        mix_previous=asked["mix_previous"],
    )
    return train_rounds(Rounds.begin(settings, plan))


def resume_rounds(folder: Path, changed: Sequence[str], *, trusted: bool) -> str | None:
    """Go on with the rounds of a folder and return how the last one ended; None where it holds none.

    Args:
        folder: what may hold rounds.
        changed: what the user would change.
        trusted: files that the folder names may be run.

    Raises:
        OptionError: something is to be changed.
        MintTrainError: a round failed.
    """
    from mint_train.sampling.rounds import Rounds, holds_rounds

    if not holds_rounds(folder):
        return None
    if changed:
        raise OptionError(f"{folder} holds rounds, which go on with the settings that they began with")
    return train_rounds(Rounds.read(folder, trusted=trusted))


def train_rounds(rounds: Any) -> str:
    """Train rounds, and say where they are."""
    from mint_train.cli.pairs import shown_progress
    from mint_train.observers.terminal import say

    progress = rounds.given.get("progress")
    # standard output may be lines of JSON
    tell: Callable[[str], None] = partial(say, err=progress == "json")
    result = rounds.train(shown_progress, (lambda _: None) if progress == "quiet" else tell)
    tell(f"Rounds: {rounds.folder}")
    return str(result.status)
