"""A chat template that refuses a conversation makes a bad row, in the template's own words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mint_train.errors import MintTrainError, RowError


@contextmanager
def template_refusals(field: str = "prompt") -> Iterator[None]:
    """Turn whatever a chat template raises into an error of the row that it was given.

    Raises:
        RowError: with the first line of what the template says.
    """
    from jinja2.exceptions import SecurityError

    try:
        yield
    except MintTrainError:
        raise
    except SecurityError as error:
        problem = "tries to reach what it must not (templates run in a sandbox)"
        raise RowError(field, f"the chat template {problem}: {first_line(error)}") from error
    except Exception as error:
        raise RowError(field, f"the chat template refuses the conversation: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Return the first line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
