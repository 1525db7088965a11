"""The settings that a run recorded, and what a later command may change of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from mint_train.errors import OptionError
from mint_train.settings.data_items import absolute_item, relocated, written_data, written_held_out
from mint_train.settings.merge import KEY_VARIABLE, choose_length, explain
from mint_train.settings.model import Settings, option_name
from mint_train.settings.wrong_values import in_plain_words

MAY_CHANGE = frozenset(
    {
        "base_url",
        "eval_every",
        "gradient_checkpointing",
        "judge_timeout",
        "keep",
        "keep_adapters",
        "max_retries",
        "max_tokens_in_flight",
        "pipeline",
        "price_file",
        "progress",
        "sample_every",
        "save_every",
        "second_adapter",
        "token_budget",
        "track",
        "trust_gradients",
    }
)
"""Settings that a resume may change, since they do not change what is trained."""
LENGTH = frozenset({"steps", "epochs"})
"""Settings that a resume may change where the learning rate does not depend on the number of steps."""


def restore_settings(recorded: Mapping[str, Any], folder: Path | None = None) -> Settings:
    """Return the settings that a run recorded; from the environment only the key is added.

    Args:
        recorded: the settings of `run.json`.
        folder: where the run is now, which may keep its rows.

    Raises:
        OptionError: the record was edited and is no longer valid.
    """
    key = os.environ.get(KEY_VARIABLE)
    try:
        settings = Settings(**recorded, api_key=SecretStr(key) if key else None)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise OptionError(
            f"the run's recorded settings are not valid: {field}: {in_plain_words(first)}"
        ) from None
    if folder is None:
        return settings
    data = tuple(relocated(item, folder) for item in settings.data)
    eval_data = {name: relocated(item, folder) for name, item in settings.eval_data.items()}
    return settings.model_copy(update={"data": data, "eval_data": eval_data})


def change_settings(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """Return a run's settings with what a resume changes; None counts as not given.

    Raises:
        OptionError: a value is malformed, or would make it a different run.
    """
    given = {name: value for name, value in given.items() if value is not None}
    # the loss itself compares them
    given["options"] = merged_options(settings.options, given.get("options", {}))
    changed = with_given(settings, given)
    free = MAY_CHANGE | (LENGTH if settings.schedule == "constant" else frozenset()) | {"options"}
    for name in given.keys() - free:
        before, after = comparable(settings, name), comparable(changed, name)
        if before != after and str(before) != os.path.abspath(str(after)):  # paths are recorded absolute
            raise OptionError(different_run(f"{option_name(name)} {after}", before))
    return choose_length(changed, given)


def merged_options(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a loss's options with those that a later command gives; one without a term's name is for all."""
    kept = {name: value for name, value in recorded.items() if name.rpartition(".")[2] not in given}
    return kept | dict(given)


def comparable(settings: Settings, name: str) -> object:
    """Return a setting in a form in which two of them compare: files by their absolute paths."""
    if name == "data":
        return written_data(tuple(map(absolute_item, settings.data)))
    if name == "eval_data":
        return written_held_out({key: absolute_item(item) for key, item in settings.eval_data.items()})
    return getattr(settings, name)


def with_given(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """Return settings with some of them replaced.

    Raises:
        OptionError: a value is malformed.
    """
    try:
        return Settings(**dict(settings) | dict(given))
    except ValidationError as error:
        raise OptionError(explain(error, given, settings.loss, None)) from None


def different_run(option: str, before: object) -> str:
    """Say that a resume cannot change an option."""
    return (
        f"{option}: this run was started with {before}; changing it would make it a different run. "
        "Start a new run instead"
    )
