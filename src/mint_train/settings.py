"""The settings of a run: one model for command line, environment, config file and defaults."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from mint_train.errors import OptionError
from mint_train.loss_files import loss_label
from mint_train.nearest import nearest

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


class Settings(BaseSettings):
    """Everything that decides a run. Each field but the key is an option of the command line."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    loss: str = Field(description="The loss, by its name in `mint-train losses`.")
    data: Path | None = Field(
        default=None, description="JSON Lines or JSON file of rows; without it, the loss's bundled rows."
    )
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
    lr: float = Field(
        default=1e-5, gt=0, le=1, allow_inf_nan=False, description="Learning rate [MINT_<LOSS>_LR]."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="How the learning rate goes on after the warm-up."
    )
    warmup_steps: int = Field(default=0, ge=0, description="Steps over which the learning rate rises.")
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="AdamW's weight decay.")
    grad_clip: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="Largest norm of the gradients; 0 for any."
    )
    pipeline: bool = Field(
        default=True, description="Submit a step before the one before it is known to be done."
    )
    max_length: int | None = Field(
        default=None, ge=2, description="Most tokens of prompt and completion; completions are cut to fit."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the adapter and of the data's order.")
    save_every: int | None = Field(
        default=None, ge=1, description="Steps between saved states; without it, one at the end."
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
        config: a TOML file with fields of `Settings`, the loss's options in a table `[options]`.

    Raises:
        OptionError: the first value that is wrong, with its option or variable.
    """
    given = {name: value for name, value in given.items() if value is not None}
    from_file = read_config(config) if config else {}
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
            file = TomlConfigSettingsSource(settings_cls, toml_file=config)
            return init_settings, environment, file

    try:
        settings = Merged(**given)
    except ValidationError as error:
        raise OptionError(explain(error, given, str(loss), config)) from None
    return choose_length(settings, [given, environment_values(str(loss)), from_file])


def choose_length(settings: Settings, levels: list[dict[str, Any]]) -> Settings:
    """Let the level that is asked first decide between steps and epochs.

    Raises:
        OptionError: one level gives both.
    """
    for level in levels:
        asked = [name for name in ("steps", "epochs") if name in level]
        if len(asked) > 1:
            raise OptionError("--steps and --epochs are both given; give one of them")
        if asked:
            return settings.model_copy(update={"steps" if asked == ["epochs"] else "epochs": None})
    return settings


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


def read_config(path: Path) -> dict[str, Any]:
    """Read a TOML config file.

    Raises:
        OptionError: it cannot be read, or has a setting that does not exist.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"--config {path}: {error}") from error
    allowed = set(Settings.model_fields) - SECRET_FIELDS
    for name in values:
        if name in SECRET_FIELDS:
            raise OptionError(f"--config {path}: the key does not belong in a file; set MINT_API_KEY")
        if name not in allowed:
            raise OptionError(f'--config {path}: no setting is called "{name}"{nearest(name, allowed)}')
    if not isinstance(values.get("options", {}), dict):
        raise OptionError(f"--config {path}: the options of the loss belong in a table [options]")
    return values


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
