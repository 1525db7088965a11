"""A loss's options: validated against the plugin's own model, and described for the help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticUndefined

from mint_train.errors import OptionError, nearest


class NoOptions(BaseModel):
    """The options of a loss that declares none."""

    model_config = ConfigDict(extra="forbid")


def validate_options(loss: str, model: type[BaseModel], options: Mapping[str, Any]) -> BaseModel:
    """Validate a loss's options.

    Raises:
        OptionError: the first problem, in one line.
    """
    for name in options:
        if name not in model.model_fields:
            known = ", ".join(model.model_fields) or "none"
            raise OptionError(
                f'the loss "{loss}" has no option "{name}"{nearest(name, model.model_fields)}; '
                f"its options: {known}"
            )
    try:
        return model.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "options"
        raise OptionError(f'--set {name}={first["input"]} of the loss "{loss}": {first["msg"]}') from None


def option_rows(model: type[BaseModel]) -> list[tuple[str, str]]:
    """Describe a loss's options, a row each: `name TYPE` and its text with the default."""
    schema = model.model_json_schema()["properties"] if model.model_fields else {}
    rows = []
    for name, field in model.model_fields.items():
        default = "" if field.default is PydanticUndefined else f"  [default: {field.default}]"
        rows.append((f"{name} {type_name(schema[name])}", (field.description or "") + default))
    return rows


def type_name(schema: Mapping[str, Any]) -> str:
    """Name the type of a JSON Schema property as a user would write its values."""
    if "enum" in schema:
        return "|".join(str(value) for value in schema["enum"])
    if "anyOf" in schema:
        return "|".join(type_name(part) for part in schema["anyOf"])
    names = {"number": "NUMBER", "integer": "N", "string": "TEXT", "boolean": "true|false", "null": "none"}
    return names.get(schema.get("type", ""), "VALUE")
