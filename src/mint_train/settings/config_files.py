"""Config files: settings in TOML or YAML, their schema for an editor, and the file that repeats a run."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mint_train.errors import OptionError, nearest
from mint_train.settings.data_items import problem_in_file
from mint_train.settings.model import SECRET_FIELDS, Settings
from mint_train.settings.rounds import ROUNDS_FIELDS, RoundsSettings

YAML_ENDINGS = (".yaml", ".yml")
TABLES = {"options": "loss", "judge_options": "judge"}
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def read_config(path: Path) -> dict[str, Any]:
    """Read a config file: TOML, or YAML if its name ends in .yaml or .yml.

    Raises:
        OptionError: it cannot be read, or has a setting that does not exist.
    """
    values = read_values(path, "--config")
    if not isinstance(values, dict):
        raise OptionError(f"--config {path}: must hold settings by name")
    allowed = (Settings.model_fields.keys() | ROUNDS_FIELDS) - SECRET_FIELDS
    for name in values:
        if name in SECRET_FIELDS:
            raise OptionError(f"--config {path}: the key does not belong in a file; set MINT_API_KEY")
        if name not in allowed:
            raise OptionError(f'--config {path}: no setting is called "{name}"{nearest(name, allowed)}')
    for table, owner in TABLES.items():
        if not isinstance(values.get(table, {}), dict):
            raise OptionError(f"--config {path}: the options of the {owner} belong in a table [{table}]")
    for name in ("data", "eval_data"):
        if problem := problem_in_file(name, values.get(name)):
            raise OptionError(f"--config {path}: {problem}")
    return values


def read_values(path: Path, option: str) -> Any:
    """Return what a file of TOML holds, or of YAML if its name ends in .yaml or .yml.

    Raises:
        OptionError: it cannot be read; the message begins with the option that named it.
    """
    try:
        return parse_config(path.read_text(encoding="utf-8"), yaml=path.suffix in YAML_ENDINGS)
    except (OSError, ValueError) as error:
        raise OptionError(f"{option} {path}: {' '.join(str(error).split())}") from error


def parse_config(text: str, *, yaml: bool) -> Any:
    """Parse YAML, or TOML.

    Raises:
        ValueError: it is malformed, has a key twice or is nested too deeply; YAML has too many aliases.
    """
    try:
        if not yaml:
            return tomllib.loads(text)
        from mint_train.settings.yaml_files import parse_yaml

        return parse_yaml(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def config_text(settings: Mapping[str, Any]) -> str:
    """Return settings as TOML that `--config` reads; those that are None are left out."""
    import tomlkit

    given = {name: value for name, value in settings.items() if value is not None}
    tables = {name: value for name, value in given.items() if isinstance(value, dict)}
    plain = {name: value for name, value in given.items() if name not in tables}
    return tomlkit.dumps(plain | {name: value for name, value in tables.items() if value})


def config_schema(options_schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the JSON Schema of a config file.

    Args:
        options_schema: the schema of the chosen loss's options, or None to allow any.
    """
    schema = Settings.model_json_schema() | {"$schema": SCHEMA_DIALECT, "title": "Settings of mint-train"}
    known = schema["properties"] | RoundsSettings.model_json_schema()["properties"]
    properties = {name: value for name, value in known.items() if name not in SECRET_FIELDS}
    if options_schema is not None:
        properties["options"] = dict(options_schema)
    # a file may leave out anything, even the loss: the command line can name it
    return {name: value for name, value in schema.items() if name != "required"} | {"properties": properties}
