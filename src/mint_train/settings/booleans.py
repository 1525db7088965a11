"""True and false are not numbers, and numbers are not true or false."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError, ValidatorFunctionWrapHandler
from pydantic_core import PydanticCustomError

BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
"""How pydantic calls it where a number, such as the 1 that it reads for true, is out of bounds."""


def keep_booleans_apart(value: Any, read_as: ValidatorFunctionWrapHandler) -> Any:
    """Return what a field's type makes of a value, as a validator of all fields of a model.

    Without it pydantic reads `rank = true` as 1 and `overwrite = 1` as true.

    Raises:
        PydanticCustomError: one is true or false, and the other is a number.
    """
    try:
        read = read_as(value)
    except ValidationError as error:
        if isinstance(value, bool) and error.errors()[0]["type"] in BOUNDS:
            raise boolean_or_number("a number, not true or false") from None
        raise
    both_count = isinstance(value, bool | int | float) and isinstance(read, bool | int | float)
    if both_count and isinstance(value, bool) != isinstance(read, bool):
        needed = "true or false, not a number" if isinstance(read, bool) else "a number, not true or false"
        raise boolean_or_number(needed)
    return read


def boolean_or_number(needed: str) -> PydanticCustomError:
    """Say which of both is needed."""
    return PydanticCustomError("boolean_or_number", "Input should be {needed}", {"needed": needed})
