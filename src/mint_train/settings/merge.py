"""The settings of a new run: command line over environment over config file over defaults."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mint_train.errors import OptionError, counted, nearest
from mint_train.settings.config_files import read_config
from mint_train.settings.loss_names import loss_label
from mint_train.settings.model import SECRET_FIELDS, Settings, option_name
from mint_train.settings.other_names import OTHER_NAMES
from mint_train.settings.rounds import ONLY_ROUNDS, ROUNDS_FIELDS, RoundsSettings
from mint_train.settings.wrong_values import in_plain_words, where_in

KEY_VARIABLE = "MINT_API_KEY"
VARIABLES = {
    "api_key": KEY_VARIABLE,
    "base_url": "MINT_BASE_URL",
    "model": "MINT_BASE_MODEL",
    "rank": "MINT_LORA_RANK",
}
LOSS_VARIABLES = {"steps": "MINT_{loss}_STEPS", "lr": "MINT_{loss}_LR"}
NEEDED_BY_ROUNDS = ("prompts", "judge")
JUDGE_OPTIONS = "judge_options"


def load_settings(given: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Merge what was given (command line or Python) over the environment, the config file and the defaults.

    Args:
        given: values by field name; None counts as not given.
        config: a TOML or YAML file with fields of `Settings`, the loss's options in a table `options`.

    Raises:
        OptionError: the first value that is wrong, with its option or variable.
    """
    given = {name: value for name, value in given.items() if value is not None}
    from_file = settings_in(config) if config else {}
    loss = given.get("loss", from_file.get("loss"))
    if loss is None:
        raise OptionError(
            "no loss is chosen: give --loss NAME; `mint-train losses` lists what is installed, "
            "`mint-train --help` all options"
        )
    environment = environment_values(str(loss))
    tables = {name: {**from_file.get(name, {}), **given.get(name, {})} for name in ("options", JUDGE_OPTIONS)}
    try:
        settings = Settings(**{**from_file, **environment, **given, **tables})
    except ValidationError as error:
        raise OptionError(explain(error, given, str(loss), config)) from None
    return choose_length(settings, given, environment, from_file)


def settings_in(config: Path) -> dict[str, Any]:
    """Return the fields of `Settings` that a config file has.

    Raises:
        OptionError: the file cannot be read, or has a name that is not a field.
    """
    return {name: value for name, value in read_config(config).items() if name not in ONLY_ROUNDS}


def choose_length(settings: Settings, *levels: Mapping[str, Any]) -> Settings:
    """Let the first level that gives a length decide between steps and epochs.

    Raises:
        OptionError: one level gives both, or the warm-up is longer than the run.
    """
    for level in levels:
        asked = [name for name in ("steps", "epochs") if name in level]
        if len(asked) > 1:
            raise OptionError("--steps and --epochs are both given; give one of them")
        if asked:
            settings = settings.model_copy(update={"steps" if asked == ["epochs"] else "epochs": None})
            break
    if settings.steps is not None:
        check_warmup(settings, settings.steps)
    return settings


def check_warmup(settings: Settings, steps: int) -> None:
    """Refuse a warm-up that is longer than the run.

    Raises:
        OptionError: with both numbers of steps.
    """
    if settings.warmup_steps > steps:
        raise OptionError(
            f"--warmup-steps {settings.warmup_steps}: the warm-up is longer than the run's "
            f"{counted(steps, 'step')}, so the learning rate never reaches --lr; shorten it, or raise --steps"
        )


def variable_names(loss: str) -> dict[str, str]:
    """Return by field the environment variable that sets it for a loss."""
    stem = re.sub(r"[^A-Z0-9]+", "_", loss_label(loss).upper()).strip("_")
    return VARIABLES | {field: name.format(loss=stem) for field, name in LOSS_VARIABLES.items()}


def environment_values(loss: str) -> dict[str, str]:
    """Return by field what the environment sets for a loss; an empty variable counts as unset."""
    return {field: os.environ[name] for field, name in variable_names(loss).items() if os.environ.get(name)}


def explain(error: ValidationError, given: Mapping[str, Any], loss: str, config: Path | None) -> str:
    """Say in one line which option, variable or line of the file is wrong, without ever showing a secret."""
    first = error.errors()[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    if field in ONLY_ROUNDS:  # a command has no such option
        return f"{field} is for train(..., rounds=N) alone; leave it out"
    if field not in Settings.model_fields:
        ours = OTHER_NAMES.get(field.replace("_", "-"))
        hint = f"; here it is {ours}" if ours else nearest(field, [*Settings.model_fields, *ONLY_ROUNDS])
        return f'no setting is called "{field}"{hint}'
    if field in given:
        name = option_name(field)
    elif field in environment_values(loss):
        name = variable_names(loss)[field]
    else:
        name = f"--config {config}: {field}"
    value = "" if field in SECRET_FIELDS else shown_value(first["input"])
    return f"{name}{where_in(first)}{value}: {in_plain_words(first)}"


def shown_value(value: object) -> str:
    """Return a wrong value as it was given; rows of a program are not shown."""
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return f"={' '.join(value)}" if value else ""
    return f"={value}" if isinstance(value, str | int | float) or value is None else ""


def load_rounds(given: Mapping[str, Any], config: Path | None = None) -> RoundsSettings | None:
    """Merge what was given (command line or Python) over the config file and the defaults.

    Args:
        given: values by field name; None counts as not given.
        config: a config file, of which the fields of rounds are read.

    Returns:
        None where no rounds are asked for.

    Raises:
        OptionError: a value is wrong, prompts or judge are missing, or a field stands without `rounds`.
    """
    from_file = rounds_in(config) if config else {}
    given = {name: value for name, value in given.items() if value is not None}
    options = {**from_file.get(JUDGE_OPTIONS, {}), **given.get(JUDGE_OPTIONS, {})}
    merged = {**from_file, **given, **({JUDGE_OPTIONS: options} if options else {})}
    asked = checked_rounds(
        merged, {name: f"--config {config}: {name}" for name in from_file if name not in given}
    )
    if asked.rounds is None:
        for name in [name for name in merged if name in ONLY_ROUNDS]:
            where = f"--config {config}: {name}" if name not in given else option_name(name)
            other = "; --token-budget bounds what a run sends" if name == "max_tokens" else ""
            raise OptionError(f"{where} is for --rounds N, which is not given{other}")
        return None
    for name in NEEDED_BY_ROUNDS:
        if getattr(asked, name) is None:
            raise OptionError(f"--rounds needs {option_name(name)}")
    return asked


def rounds_in(config: Path) -> dict[str, Any]:
    """Return the fields of rounds that a config file has.

    Raises:
        OptionError: the file cannot be read, or a value is wrong.
    """
    found = {name: value for name, value in read_config(config).items() if name in ROUNDS_FIELDS}
    checked_rounds(found, {name: f"--config {config}: {name}" for name in found})
    return found


def checked_rounds(values: Mapping[str, Any], named: Mapping[str, str]) -> RoundsSettings:
    """Return the values as a model.

    Args:
        values: by field.
        named: what an error calls a field, where that is not its option.

    Raises:
        OptionError: a value is wrong.
    """
    try:
        return RoundsSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        name = named.get(field, option_name(field))
        value = shown_value(first["input"])
        raise OptionError(f"{name}{where_in(first)}{value}: {in_plain_words(first)}") from None
