"""The types of settings: what a text on the command line, in a variable or in a file becomes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, SkipValidation, WithJsonSchema
from pydantic_core import PydanticCustomError

from mint_train.settings.data_items import (
    HUB,
    STANDARD_INPUT,
    DataItems,
    HeldOutItems,
    parse_data,
    parse_held_out,
    written_data,
    written_held_out,
)

COMMA = re.compile(",")
COMMA_OUTSIDE = re.compile(r",(?![^()]*\))")
"""A comma between fields, and not one in the meanings of values: `label=label(yes, very=true;no=false)`."""


def parse_columns(value: object) -> object:
    """Parse `FIELD=COLUMN,...` into a dictionary; the model checks the names of one that is given."""
    table = "a table, such as [columns] in a config file, in which a column's name may hold a comma"
    return by_name(value, "FIELD=COLUMN", table, COMMA_OUTSIDE)


def refuse_full_training(rank: int) -> int:
    """Refuse rank 0, by which some programs ask for training without an adapter."""
    if rank == 0:
        raise PydanticCustomError(
            "full_training",
            "this asks for full training, which no server says that it can do, nor does this machine; "
            "give the rank of an adapter, 1 or more",
        )
    return rank


def parse_arguments(value: object) -> object:
    """Parse `KEY=VALUE,...` into a dictionary, each value as JSON where it is JSON, else as text."""
    parsed = by_name(value, "KEY=VALUE")
    return {key: json_or_text(said) for key, said in parsed.items()} if isinstance(value, str) else parsed


def by_name(
    value: object, form: str, table: str = "a table", comma: re.Pattern[str] = COMMA
) -> Mapping[Any, Any]:
    """Parse `KEY=VALUE,...` into a dictionary of texts; return a dictionary as it is.

    Args:
        value: a text, or anything else.
        form: what one pair is called.
        table: what else may be given.
        comma: what separates the pairs.

    Raises:
        PydanticCustomError: it is neither; the message says in which form to write it.
    """
    if isinstance(value, Mapping):
        return value
    pairs = [pair.partition("=") for pair in comma.split(value)] if isinstance(value, str) else []
    if not pairs or not all(equals and key.strip() for key, equals, _ in pairs):
        problem = "write it as {form}, separated by commas, or give {table}"
        raise PydanticCustomError("by_name", problem, {"form": form, "table": table})
    return {key.strip(): said.strip() for key, _, said in pairs}


def json_or_text(said: str) -> object:
    """Read a value as JSON (`false`, `3`), or keep it as the text that it is."""
    try:
        return json.loads(said)
    except ValueError:
        return said


def parse_names(value: object) -> list[Any] | tuple[Any, ...]:
    """Split names at their commas; the model checks those of a list.

    Raises:
        PydanticCustomError: it is neither.
    """
    if isinstance(value, str):
        return [name.strip() for name in value.split(",")]
    if isinstance(value, list | tuple):
        return value
    raise PydanticCustomError("names", "give names separated by commas, or a list of them")


def absolute_path(value: object) -> object:
    """Make a file's path stand wherever a run is resumed from."""
    return os.path.abspath(value) if isinstance(value, str | Path) else value


def path_to_text(value: object) -> object:
    """Accept a path from Python where the command line gives text."""
    return str(value) if isinstance(value, Path) else value


def without_credentials(value: object) -> object:
    """Strip a user and a password from an address, so that no file and no message ever holds them."""
    if not isinstance(value, str) or "@" not in value:
        return value
    scheme, slashes, rest = value.rpartition("://")
    return f"{scheme}{slashes}{rest.rpartition('@')[2]}"


def absolute_source(value: object) -> object:
    """Make a file of rows stand wherever a run is resumed from; a data set of the hub stays as it is.

    Raises:
        PydanticCustomError: the rows would come from standard input.
    """
    if isinstance(value, str) and value == STANDARD_INPUT:
        raise PydanticCustomError(
            "prompts", "a run that is resumed reads the prompts again; write them to a file"
        )
    return value if isinstance(value, str) and value.startswith(tuple(HUB)) else absolute_path(value)


PathName = Annotated[str | None, BeforeValidator(path_to_text)]
MOST = 10**9
"""Above any count that makes sense, and small enough that products of two fit 64 bits."""
Count = Annotated[int, Field(ge=1, le=MOST)]
Rank = Annotated[int, AfterValidator(refuse_full_training), Field(ge=1, le=MOST)]
SOURCE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "weight": {"type": "number", "exclusiveMinimum": 0},
                "columns": {"type": "object", "additionalProperties": {"type": "string"}},
            },
            "required": ["name"],
            "additionalProperties": False,
        },
    ]
}
Data = Annotated[
    SkipValidation[DataItems],
    BeforeValidator(parse_data),
    PlainSerializer(written_data),
    WithJsonSchema({"anyOf": [SOURCE_SCHEMA, {"type": "array", "items": SOURCE_SCHEMA}]}),
]
HeldOut = Annotated[
    SkipValidation[HeldOutItems],
    BeforeValidator(parse_held_out),
    PlainSerializer(written_held_out),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                {"type": "object", "additionalProperties": SOURCE_SCHEMA},
            ]
        }
    ),
]
Columns = Annotated[dict[str, str], BeforeValidator(parse_columns)]
Arguments = Annotated[dict[str, Any], BeforeValidator(parse_arguments)]
FilePath = Annotated[str | None, BeforeValidator(absolute_path)]
Names = Annotated[tuple[str, ...], BeforeValidator(parse_names)]
SourceName = Annotated[str | None, BeforeValidator(absolute_source)]
JudgeName = Annotated[
    str | None,
    Field(
        min_length=1,
        description="Judge that scores the completions of --sample-prompts, and those of --rounds: an "
        "installed plugin.",
    ),
]
JudgeOptions = Annotated[dict[str, Any], Field(description="An option of the judge; repeatable.")]
JUDGE_SECONDS = 600.0
"""That a judge may take for a batch, where nothing else is said."""
JudgeSeconds = Annotated[
    float,
    Field(gt=0, allow_inf_nan=False, description="Seconds that the judge may take for a batch."),
]
