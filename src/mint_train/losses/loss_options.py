"""A loss's options: validated against the plugin's own model, and described for the help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import isclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Secret, SecretBytes, SecretStr, ValidationError
from pydantic_core import PydanticUndefined

from mint_train.errors import OptionError, PluginError, nearest
from mint_train.plugins.guarding import said
from mint_train.settings.wrong_values import in_plain_words

BY_NAME = ("populate_by_name", "validate_by_name")
"""Settings of a model that takes its fields' own names beside their aliases."""
SECRETS = (SecretStr, SecretBytes, Secret)


class NoOptions(BaseModel):
    """The options of a loss that declares none."""

    model_config = ConfigDict(extra="forbid")


def validate_options(
    name: str, model: type[BaseModel], options: Mapping[str, Any], kind: str = "loss"
) -> BaseModel:
    """Validate the options of a loss or of another kind of plugin.

    Raises:
        PluginError: the model has an option that no run could record and read again, or a value of that kind.
        OptionError: the first problem, in one line.
    """
    check_options_model(f'the {kind} "{name}"', model)
    for option in options:
        if option not in model.model_fields:
            known = ", ".join(model.model_fields) or "none"
            raise OptionError(
                f'the {kind} "{name}" has no option "{option}"{nearest(option, model.model_fields)}; '
                f"its options: {known}"
            )
    try:
        validated = model.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"]) or "options"
        given = "" if first["type"] == "missing" else f"={first['input']}"
        raise OptionError(f'--set {option}{given} of the {kind} "{name}": {in_plain_words(first)}') from None
    try:
        validated.model_dump(mode="json")
    except Exception as error:
        raise PluginError(
            f'the {kind} "{name}" has an option that cannot be recorded: {said(error)}; '
            "give it numbers, text, or lists or tables of these"
        ) from error
    return validated


def check_options_model(who: str, model: type[BaseModel]) -> None:
    """Refuse a model of options that no run could record and read again: its own, and those inside it.

    Raises:
        PluginError: an option goes by another name than its field's, or holds a secret.
    """
    for name, field in model.model_fields.items():
        if any(issubclass(kind, SECRETS) for kind in types_in(field.annotation)):
            raise PluginError(
                f'{who}: its option "{name}" holds a secret, and options are recorded; '
                "read the secret from an environment variable"
            )
    for kind in types_in(model):
        by_name = issubclass(kind, BaseModel) and any(kind.model_config.get(each) for each in BY_NAME)
        fields = kind.model_fields if issubclass(kind, BaseModel) and not by_name else {}
        for name, field in fields.items():
            for alias in (field.alias, field.validation_alias, field.serialization_alias):
                if alias not in (None, name):
                    raise PluginError(
                        f'{who}: its option "{name}" has an alias, and a value given by the name would be '
                        "dropped; leave the alias out"
                    )


def types_in(annotation: Any, seen: set[Any] | None = None) -> Iterator[type]:
    """Yield the classes that an annotation names, and those of the fields of the models among them."""
    seen = set() if seen is None else seen
    named = get_origin(annotation) or annotation
    if isclass(named) and named not in seen:
        seen.add(named)
        yield named
        if issubclass(named, BaseModel):
            for field in named.model_fields.values():
                yield from types_in(field.annotation, seen)
    for part in get_args(annotation):
        yield from types_in(part, seen)


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
