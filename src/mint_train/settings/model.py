"""The settings of a run: one model for command line, environment, config file and defaults."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from mint_train.errors import OptionError
from mint_train.settings.config_files import config_schema, read_config
from mint_train.settings.loss_names import loss_label

MINT_DEFAULT_MODEL = "Qwen/Qwen3-0.6B"
DEFAULT_STEPS = 3
SECRET_FIELDS = frozenset({"api_key"})
ENVIRONMENT = {
    "api_key": "MINT_API_KEY",
    "base_url": "MINT_BASE_URL",
    "model": "MINT_BASE_MODEL",
    "rank": "MINT_LORA_RANK",
}
LOSS_ENVIRONMENT = {"steps": "STEPS", "lr": "LR"}


def parse_columns(value: object) -> object:
    """Turn `FIELD=COLUMN,...` into a dictionary; any other value is for the model to judge."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",")]
    for field, equals, _ in pairs:
        if not equals or not field.strip():
            raise PydanticCustomError("columns", "write it as FIELD=COLUMN, several with commas between")
    return {field.strip(): column.strip() for field, _, column in pairs}


def path_to_text(value: object) -> object:
    """Let Python give a path where the command line gives text."""
    return str(value) if isinstance(value, Path) else value


DataName = Annotated[str | None, BeforeValidator(path_to_text)]
Columns = Annotated[dict[str, str], BeforeValidator(parse_columns)]
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(
        lambda value: [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    ),
]

MAY_CHANGE = frozenset(
    {
        "base_url",
        "eval_every",
        "gradient_checkpointing",
        "keep",
        "max_retries",
        "max_tokens_in_flight",
        "pipeline",
        "progress",
        "save_every",
        "track",
    }
)
"""What a resume may set anew, since it does not change what is trained."""
LENGTH = frozenset({"steps", "epochs"})
"""What a resume may set anew where no schedule hangs on the number of steps."""


class Settings(BaseSettings):
    """Everything that decides a run. Each field but the key is an option of the command line."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    loss: str = Field(description="The loss, by its name in `mint-train losses`.")
    data: DataName = Field(
        default=None,
        description="Rows: a file (JSON Lines, JSON, CSV, Parquet, Arrow; gzip or Zstandard), a pattern of "
        "files, - for standard input, or hf:org/name:split; without it, the loss's bundled rows.",
    )
    columns: Columns = Field(
        default_factory=dict,
        description="Columns of the data under other names: prompt=question,chosen=good; prompt= leaves "
        "prompt out.",
    )
    on_bad_row: Literal["fail", "skip"] = Field(
        default="fail", description="A row that cannot be used ends the run, or is counted and listed."
    )
    special_tokens: Literal["allow", "split", "fail"] = Field(
        default="split",
        description="A special token in a text of the data: plain text (split), that token (allow), or a bad "
        "row (fail).",
    )
    eval_data: DataName = Field(
        default=None, description="Held-out rows to evaluate on, before the first step and after the last."
    )
    eval_fraction: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of --data to hold out and evaluate on instead: the same rows for every loss and "
        "seed.",
    )
    eval_every: int | None = Field(default=None, ge=1, description="Steps between further evaluations.")
    backend: Literal["auto", "mint", "local"] = Field(
        default="auto", description="auto: MinT where MINT_API_KEY is set, else this machine."
    )
    model: str | None = Field(
        default=None,
        description=f"Base model, hub name or folder [MINT_BASE_MODEL]. On MinT {MINT_DEFAULT_MODEL}; "
        "locally a small untrained model that is made on the spot.",
    )
    rank: int = Field(default=16, ge=1, description="LoRA rank [MINT_LORA_RANK].")
    steps: int | None = Field(
        default=None,
        ge=1,
        description=f"Optimiser steps [MINT_<LOSS>_STEPS]; {DEFAULT_STEPS} on bundled rows, else one epoch.",
    )
    epochs: int | None = Field(default=None, ge=1, description="Passes over the data, instead of --steps.")
    batch_size: int = Field(default=8, ge=1, description="Groups (for DPO: pairs) per step.")
    accumulate: int = Field(
        default=1,
        ge=1,
        description="Batches per step: each has a loss of its own, and the step takes their mean. For one "
        "loss over all of them raise --batch-size.",
    )
    lr: float = Field(
        default=1e-5, gt=0, le=1, allow_inf_nan=False, description="Learning rate [MINT_<LOSS>_LR]."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="How the learning rate goes on after the warm-up."
    )
    warmup_steps: int = Field(
        default=0,
        ge=0,
        description="Steps W before the full learning rate: step s of them has --lr times s / (W + 1).",
    )
    adam_beta1: float = Field(
        default=0.9, ge=0, lt=1, description="AdamW's decay of the mean gradient per step."
    )
    adam_beta2: float = Field(
        default=0.95, ge=0, lt=1, description="AdamW's decay of the mean squared gradient per step."
    )
    adam_eps: float = Field(
        default=1e-12, gt=0, allow_inf_nan=False, description="AdamW's epsilon, added to the root."
    )
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="AdamW's weight decay.")
    grad_clip: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="Largest norm of the gradients; 0 for any."
    )
    pipeline: bool = Field(
        default=True,
        description="Submit a request before the one it follows is known to be done, where that is faster.",
    )
    max_length: int | None = Field(
        default=None, ge=2, description="Most tokens of prompt and completion; completions are cut to fit."
    )
    group_by_length: bool = Field(
        default=False, description="Make steps of groups of similar length, where a server pads or compiles."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the adapter and of the data's order.")
    save_every: int = Field(default=100, ge=1, description="Steps between saved states; the last is always.")
    keep: int | None = Field(default=None, ge=1, description="Newest saved states to keep; without it, all.")
    max_retries: int = Field(
        default=5,
        ge=0,
        description="Times in a row that the run goes back to its last saved state when the service fails.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Embedded backend: the base model's numbers; auto: bfloat16 on CUDA, else float32.",
    )
    max_tokens_in_flight: int | None = Field(
        default=None,
        ge=1,
        description="Embedded backend: tokens whose activations are kept at once; by default what half "
        "of the free memory holds. A larger batch costs a second forward.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Embedded backend: less memory for a third more time."
    )
    output: Path | None = Field(
        default=None, description="Run folder to write; without it, a new folder in runs/."
    )
    overwrite: bool = Field(default=False, description="Replace the run that --output holds.")
    progress: Literal["auto", "plain", "json", "quiet"] = Field(
        default="auto", description="What is printed; auto: live on a terminal, else a plain line a step."
    )
    track: Names = Field(
        default_factory=tuple,
        description="Observers to report to: tensorboard, wandb, mlflow, trackio, or your own; several with "
        "commas between.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="The loss's options.")
    base_url: str | None = Field(default=None, description="Address of the service [MINT_BASE_URL].")
    api_key: SecretStr | None = Field(default=None, description="Key of the service, from MINT_API_KEY only.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from the caller alone; `load_settings` adds the environment and the file."""
        return (init_settings,)

    def public(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values without the secrets."""
        return self.model_dump(mode="json", exclude=set(SECRET_FIELDS))


class NamedEnvironment(EnvSettingsSource):
    """Reads each field from the variable that the documentation names for it, for the chosen loss."""

    def __init__(self, settings_class: type[BaseSettings], loss: str) -> None:
        stem = re.sub(r"[^A-Z0-9]+", "_", loss_label(loss).upper()).strip("_")
        self.names = ENVIRONMENT | {
            field: f"MINT_{stem}_{suffix}" for field, suffix in LOSS_ENVIRONMENT.items()
        }
        super().__init__(settings_class)

    def get_field_value(self, _field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Look a field up under its documented name; an empty variable counts as unset."""
        value = os.environ.get(self.names.get(field_name, ""), "") or None
        return value, field_name, False


def load_settings(given: dict[str, Any], config: Path | None = None) -> Settings:
    """Merge what was given (command line or Python) over the environment, the config file and the defaults.

    Args:
        given: values by field name; None counts as not given.
        config: a TOML or YAML file with fields of `Settings`, the loss's options in a table `options`.

    Raises:
        OptionError: the first value that is wrong, with its option or variable.
    """
    given = {name: value for name, value in given.items() if value is not None}
    from_file = (
        read_config(config, set(Settings.model_fields) - SECRET_FIELDS, SECRET_FIELDS) if config else {}
    )
    loss = given.get("loss", from_file.get("loss"))
    if loss is None:
        raise OptionError("no loss is chosen: give --loss NAME; `mint-train losses` lists what is installed")
    if options := {**from_file.get("options", {}), **given.get("options", {})}:
        given["options"] = options

    class Merged(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            environment = NamedEnvironment(settings_cls, str(loss))
            return init_settings, environment, InitSettingsSource(settings_cls, from_file)

    try:
        settings = Merged(**given)
    except ValidationError as error:
        raise OptionError(explain(error, given, str(loss), config)) from None
    return choose_length(settings, [given, environment_values(str(loss)), from_file])


def choose_length(settings: Settings, levels: list[dict[str, Any]]) -> Settings:
    """Let the level that is asked first decide between steps and epochs.

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
            f"--warmup-steps {settings.warmup_steps}: the warm-up is longer than the run's {steps} steps, "
            "so the learning rate never reaches --lr; shorten it, or raise --steps"
        )


def environment_values(loss: str) -> dict[str, str]:
    """Return by field what the environment sets for a loss."""
    names = NamedEnvironment(Settings, loss).names
    return {field: os.environ[variable] for field, variable in names.items() if os.environ.get(variable)}


def restore_settings(recorded: dict[str, Any]) -> Settings:
    """Return the settings that a run recorded; of the environment only the key is added.

    Raises:
        OptionError: the record has been edited and does not hold.
    """
    key = os.environ.get(ENVIRONMENT["api_key"]) or None
    try:
        return Settings(**recorded, api_key=SecretStr(key) if key else None)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise OptionError(f"the run's own settings do not hold: {field}: {first['msg']}") from None


def config_schema_of(options_schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the JSON Schema of a config file, with that of a loss's options where it is given."""
    return config_schema(Settings.model_json_schema(), options_schema, SECRET_FIELDS)


def change_settings(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """Return a run's settings with what a resume gives anew; None counts as not given.

    Raises:
        OptionError: a value is malformed, or would make it another run.
    """
    given = {name: value for name, value in given.items() if value is not None}
    given["options"] = settings.options | given.get("options", {})  # the loss itself compares them
    changed = with_given(settings, given)
    free = MAY_CHANGE | (LENGTH if settings.schedule == "constant" else frozenset()) | {"options"}
    for name in given.keys() - free:
        before, after = getattr(settings, name), getattr(changed, name)
        if before != after and str(before) != os.path.abspath(str(after)):  # paths are recorded absolute
            raise OptionError(another_run(f"--{name.replace('_', '-')} {after}", before))
    return choose_length(changed, [given])


def with_given(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """Return settings with some of them replaced by what is given.

    Raises:
        OptionError: a value is malformed.
    """
    try:
        return Settings(**dict(settings) | dict(given))
    except ValidationError as error:
        raise OptionError(explain(error, dict(given), settings.loss, None)) from None


def another_run(option: str, before: object) -> str:
    """Say that a resume cannot change an option."""
    return f"{option}: this run was begun with {before}, and another value makes another run: start a new one"


def explain(error: ValidationError, given: dict[str, Any], loss: str, config: Path | None) -> str:
    """Say in one line which option, variable or line of the file is wrong, without ever showing a secret."""
    first = error.errors()[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    if field in given:
        name = "--" + field.replace("_", "-")
    elif field in environment_values(loss):
        name = NamedEnvironment(Settings, loss).names[field]
    else:
        name = f"--config {config}: {field}"
    value = "" if field in SECRET_FIELDS else f"={first['input']}"
    return f"{name}{value}: {first['msg'][0].lower()}{first['msg'][1:]}"
