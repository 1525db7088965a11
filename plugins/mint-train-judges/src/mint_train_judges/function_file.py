"""A judge from a Python file of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from mint_train.plugin import Candidates, Options, PluginError, hookimpl, import_file

ARGUMENTS = ("prompt", "completion", "row")


class FunctionFile:
    """A function of one completion, in a file: `def score(prompt, completion, row)`."""

    class Options(Options):
        """Where the function is."""

        file: str = Field(min_length=1, description="Python file with the function.")
        name: str = Field(
            default="score",
            description="Its name. It takes any of prompt, completion and row, and returns a number or None.",
        )

    def __init__(self, options: FunctionFile.Options) -> None:
        """Import the file.

        Raises:
            PluginError: the file is missing, broken, or has no such function.
        """
        path = Path(options.file)
        if not path.is_file():
            raise PluginError(f"--set file={options.file}: no such file")
        function = getattr(import_file(path), options.name, None)
        if not inspect.isroutine(function):
            raise PluginError(f"{options.file} has no function {options.name}(prompt, completion, row)")
        self.function: Callable[..., float | None] = function
        self.arguments = tuple(inspect.signature(function).parameters)
        unknown = [name for name in self.arguments if name not in ARGUMENTS]
        if unknown:
            raise PluginError(
                f"{options.file}: {options.name} has an argument {unknown[0]}; it may take "
                f"{', '.join(ARGUMENTS)}"
            )

    @hookimpl
    def score(self, batch: Sequence[Candidates]) -> list[list[float | None]]:
        """Call the function for each completion."""
        return [[self._score(one, text) for text in one.completions] for one in batch]

    def _score(self, candidates: Candidates, completion: str) -> float | None:
        given: dict[str, Any] = {
            "prompt": candidates.question,
            "completion": completion,
            "row": dict(candidates.row),
        }
        return self.function(**{name: given[name] for name in self.arguments})
