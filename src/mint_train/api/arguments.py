"""What the arguments of the functions that train mean: a loss, its settings, and what is a program's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mint_train.errors import OptionError
from mint_train.groups.prompts import prompt_lines
from mint_train.judging.judge import function_name
from mint_train.losses.loss import Loss
from mint_train.losses.weighted_sum import open_loss
from mint_train.plugins.authoring import FunctionLoss
from mint_train.plugins.functions import named_function
from mint_train.sampling.rounds import PROMPTS_FILE, RoundsProgram
from mint_train.settings.keywords import plain_options
from mint_train.settings.merge import load_rounds, load_settings
from mint_train.settings.model import Settings
from mint_train.settings.rounds import RoundsSettings, split_rounds
from mint_train.settings.wrong_values import described
from mint_train.training.watching import Watching


def name_of(loss: str | FunctionLoss) -> str:
    """Return what a loss is called.

    Raises:
        OptionError: it is neither a name nor a function that is a loss.
    """
    if isinstance(loss, str | FunctionLoss):
        return loss if isinstance(loss, str) else loss.__name__
    raise OptionError(
        f"loss is {described(loss)}; give the name of a loss, the path of its file as text, or a function "
        "under @mint_train.loss"
    )


def rounds_and_run(settings: Mapping[str, Any]) -> tuple[RoundsSettings | None, dict[str, Any]]:
    """Return the fields of rounds among some keywords, None without `rounds`, and the settings of training.

    Raises:
        OptionError: a field of rounds is wrong, is missing, or stands without `rounds`.
    """
    known = judge_by_name(settings)
    if not isinstance(known.get("prompts"), str | Path | None):
        known["prompts"] = PROMPTS_FILE
    of_rounds, of_run = split_rounds(known)
    return load_rounds(of_rounds), of_run


def judge_by_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return keywords with the name of a judge that is a function, and its options as a file keeps them."""
    known = dict(settings)
    if known.get("judge") is not None and not isinstance(known["judge"], str):
        known["judge"] = function_name(known["judge"])
    if "judge_options" in known:
        known["judge_options"] = plain_options(known["judge_options"], "judge_options")
    return known


def program_of(
    loss: str | FunctionLoss, observers: Sequence[object], settings: Mapping[str, Any]
) -> RoundsProgram:
    """Return what a call brings that no settings hold: functions, and prompts that are in no file."""
    judge, prompts = settings.get("judge"), settings.get("prompts")
    in_file = isinstance(prompts, str | Path | None)
    return RoundsProgram(
        loss=None if isinstance(loss, str) else loss,
        observers=observers,
        judge=judge if callable(judge) else None,
        prompts=None if in_file else prompt_lines(prompts),
    )


def loaded_settings(
    loss: str | FunctionLoss, options: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> Settings:
    """Return the settings of new runs.

    Raises:
        OptionError: one is wrong.
    """
    given = {**judge_by_name(settings), "options": plain_options(options, "options"), "loss": name_of(loss)}
    return load_settings(given)


def opened_loss(
    loss: str | FunctionLoss, options: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> tuple[Settings, Loss]:
    """Return the settings of a new run and its loss.

    Raises:
        UserError: a setting, an option or the loss is wrong.
    """
    loaded = loaded_settings(loss, options, settings)
    if isinstance(loss, str):
        return loaded, open_loss(loaded.loss, loaded.options)
    return loaded, Loss.of(named_function(loss), loaded.options)


def opened_losses(
    losses: Mapping[str, str | FunctionLoss],
    options: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> dict[str, tuple[Settings, Loss]]:
    """Return the settings of several runs and their losses, by name, so that errors show before one begins.

    Raises:
        UserError: a setting, an option, a loss or the judge is wrong.
    """
    if strange := options.keys() - losses.keys():
        raise OptionError(f"options: {min(strange)} is none of the losses {', '.join(losses)}")
    opened = {name: opened_loss(loss, options.get(name), settings) for name, loss in losses.items()}
    if opened:
        first = next(iter(opened))  # all have the same prompts and judge
        Watching.of(opened[first][0], program_of(losses[first], (), settings).judge)
    return opened
