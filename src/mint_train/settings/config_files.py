"""Config files: settings in TOML or YAML, the schema that an editor checks them with, and a run's own."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mint_train.errors import OptionError, nearest

YAML_ENDINGS = (".yaml", ".yml")
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def read_config(path: Path, allowed: Collection[str], secret: Collection[str]) -> dict[str, Any]:
    """Read a config file: TOML, or YAML where its name ends in .yaml or .yml.

    Args:
        path: the file.
        allowed: the settings that it may hold.
        secret: the settings that belong in no file.

    Raises:
        OptionError: it cannot be read, or has a setting that does not exist.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = parse_yaml(text) if path.suffix in YAML_ENDINGS else tomllib.loads(text)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise OptionError(f"--config {path}: {reason}") from error
    if not isinstance(values, dict):
        raise OptionError(f"--config {path}: must hold settings by name")
    for name in values:
        if name in secret:
            raise OptionError(f"--config {path}: the key does not belong in a file; set MINT_API_KEY")
        if name not in allowed:
            raise OptionError(f'--config {path}: no setting is called "{name}"{nearest(name, allowed)}')
    if not isinstance(values.get("options", {}), dict):
        raise OptionError(f"--config {path}: the options of the loss belong in a table [options]")
    return values


def parse_yaml(text: str) -> Any:
    """Parse YAML; an empty file holds no settings.

    Raises:
        ValueError: it is broken.
    """
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def config_text(settings: Mapping[str, Any]) -> str:
    """Write settings as TOML that `--config` reads; what is None is left out."""
    import tomlkit

    given = {name: value for name, value in settings.items() if value is not None}
    tables = {name: value for name, value in given.items() if isinstance(value, dict)}
    plain = {name: value for name, value in given.items() if name not in tables}
    return tomlkit.dumps(plain | {name: value for name, value in tables.items() if value})


def config_schema(
    settings_schema: Mapping[str, Any], options_schema: Mapping[str, Any] | None, secret: Collection[str]
) -> dict[str, Any]:
    """Return the JSON Schema of a config file.

    Args:
        settings_schema: the settings model's own schema.
        options_schema: the schema of the chosen loss's options, or None to allow any.
        secret: the settings that belong in no file.
    """
    schema = dict(settings_schema) | {"$schema": SCHEMA_DIALECT, "title": "Settings of mint-train"}
    properties = {name: value for name, value in schema["properties"].items() if name not in secret}
    if options_schema is not None:
        properties["options"] = dict(options_schema)
    # a file may leave out anything, the loss too: the command line can name it
    return {name: value for name, value in schema.items() if name != "required"} | {"properties": properties}
