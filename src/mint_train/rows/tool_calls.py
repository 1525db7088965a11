"""Tools and the calls to them: the forms that data sets write them in, made one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mint_train.errors import RowError
from mint_train.rows.row import kind
from mint_train.rows.values import from_json, text


def tool_list(value: object, field: str) -> list[Any]:
    """Return the tools that a row defines: a list of JSON Schemas, or that list as JSON text.

    Raises:
        RowError: it is something else, or a tool has no name.
    """
    found = from_json(value, field)
    if isinstance(found, Mapping):
        found = [found]
    if not isinstance(found, list):
        raise RowError(field, f"must be a list of tools, or one as JSON text, not {kind(found)}")
    tools = [from_json(tool, field) for tool in found]
    for index, tool in enumerate(tools):
        text(tool_name(tool), f"{field}[{index}].name")
    return tools


def tool_name(tool: object) -> object:
    """Return a tool's name, or None where it has none."""
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    return inner.get("name") if isinstance(inner, Mapping) else None


def tool_calls(value: object, field: str) -> list[dict[str, Any]]:
    """Return the calls of a message as OpenAI writes them, their arguments as an object where they are JSON.

    Raises:
        RowError: it is not a list of calls.
    """
    found = from_json(value, field)
    if not isinstance(found, list):
        raise RowError(field, f"must be a list of calls, not {kind(found)}")
    return [tool_call(call, f"{field}[{index}]") for index, call in enumerate(found)]


def tool_call(value: object, field: str) -> dict[str, Any]:
    """Return one call: `{"type": "function", "function": {"name": ..., "arguments": ...}}`, its id beside.

    A chat template gets the arguments as a server gives them to it: an object where they are JSON text.

    Raises:
        RowError: it has no name.
    """
    call = from_json(value, field)
    if not isinstance(call, Mapping):
        raise RowError(field, f"must be a call with name and arguments, not {kind(call)}")
    inner = from_json(call.get("function", call), f"{field}.function")
    if not isinstance(inner, Mapping):
        raise RowError(f"{field}.function", f"must be an object with name and arguments, not {kind(inner)}")
    name = text(inner.get("name"), f"{field}.name")
    arguments: object = next(
        (inner[key] for key in ("arguments", "parameters", "args") if inner.get(key) is not None), {}
    )
    made: dict[str, Any] = {
        "type": "function",
        "function": {"name": name, "arguments": from_json(arguments, f"{field}.arguments")},
    }
    return made if call.get("id") is None else {"id": call["id"], **made}


def calls_in_text(value: object, field: str) -> list[dict[str, Any]]:
    """Return the calls that ShareGPT writes as the text of a turn: one JSON object, or a list of them.

    Raises:
        RowError: the text is not JSON of that form.
    """
    found = from_json(value, field)
    if isinstance(found, Mapping):
        found = [found]
    if not isinstance(found, list):
        raise RowError(field, 'must be a call as JSON text: {"name": ..., "arguments": {...}}')
    return tool_calls(found, field)
