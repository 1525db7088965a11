"""What is wrong with a value, in plain words where pydantic's are those of Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "list": "a list",
    "tuple": "a list",
    "dict": "a table",
}
"""What a value of a type is called where it is written: on the command line, in a file."""
OF_ANOTHER_TYPE = ("type", "parsing", "parsing_size", "from_float", "unicode")
"""Ends of the names that pydantic gives to such errors."""


def in_plain_words(error: Mapping[str, Any]) -> str:
    """Return what is wrong with a value.

    Args:
        error: one of `ValidationError.errors()`.
    """
    wanted, _, problem = error["type"].partition("_")
    if wanted in WANTED and problem in OF_ANOTHER_TYPE:
        return f"input should be {WANTED[wanted]}"
    if wanted == "missing":
        return "it must be given"
    said: str = error["msg"].removeprefix("Value error, ").replace("String should", "input should", 1)
    return f"{said[:1].lower()}{said[1:]}"


def where_in(error: Mapping[str, Any]) -> str:
    """Return the key inside of a setting that an error is about, `.KEY`, or nothing."""
    return "".join(f".{part}" for part in error["loc"][1:] if isinstance(part, str) and part != "[key]")


def described(value: object) -> str:
    """Say of what kind a value is, in the words of a config file where it has one."""
    kinds: dict[type, str] = {bool: "true or false", int: "a number", float: "a number", dict: "a table"}
    return kinds.get(type(value), f"a {type(value).__name__}")
