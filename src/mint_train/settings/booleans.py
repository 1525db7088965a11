"""True and false are not numbers, and numbers are not true or false."""

from __future__ import annotations

from typing import Any

from pydantic import ValidatorFunctionWrapHandler
from pydantic_core import PydanticCustomError


def keep_booleans_apart(value: Any, read_as: ValidatorFunctionWrapHandler) -> Any:
    """Return what a field's type makes of a value, as a validator of all fields of a model.

    Without it pydantic reads `rank = true` as 1 and `overwrite = 1` as true.

    Raises:
        PydanticCustomError: one is true or false, and the other is a number.
    """
    read = read_as(value)
    both_count = isinstance(value, bool | int | float) and isinstance(read, bool | int | float)
    if both_count and isinstance(value, bool) != isinstance(read, bool):
        needed = "true or false, not a number" if isinstance(read, bool) else "a number, not true or false"
        raise PydanticCustomError("boolean_or_number", "Input should be {needed}", {"needed": needed})
    return read
