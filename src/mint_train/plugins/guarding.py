"""A plugin that fails in a hook: one line with the plugin, the hook, its file and its line."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from functools import wraps
from inspect import unwrap
from pathlib import Path
from typing import Any

import pluggy

from mint_train.errors import DoesNotFit, MintTrainError, PluginError
from mint_train.plugins.returned import wrong_kind

MATHEMATICS = "compute_loss"
"""Its exceptions are reported where the groups of the batch are known; only an exit is stopped here."""
LINKING = "link_examples"
"""Its value may be a generator, whose code runs when it is iterated."""


def guard_hooks(manager: pluggy.PluginManager) -> None:
    """Turn what a plugin raises, an exit of the program included, into one line; call it once all are there.

    What a plugin prints goes to standard error: standard output may be lines of JSON.
    """
    for name, plugin in manager.list_name_plugin():
        for caller in manager.get_hookcallers(plugin) or ():
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin:
                    implementation.function = guarded(  # type: ignore[misc]
                        name, caller.name, implementation.function, getattr(plugin, "function", None)
                    )


def guarded(
    loss: str, hook: str, function: Callable[..., Any], written: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Wrap the implementation of a hook: what it raises, and a value of a wrong kind, is one line.

    Args:
        loss: the plugin's name.
        hook: the hook's name.
        function: what implements it.
        written: the function that a loss of one function is, if this is one.
    """
    code = getattr(unwrap(written or function), "__code__", None)
    file, line = (code.co_filename, code.co_firstlineno) if code else ("", 0)

    def watched(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            with redirect_stdout(sys.stderr):
                return function(*arguments)
        except (MintTrainError, DoesNotFit):
            raise
        except (Exception, SystemExit) as error:
            if hook == MATHEMATICS and not isinstance(error, SystemExit):
                raise
            raise PluginError(f'the loss "{loss}" {failure(hook, error, file)}') from error

    @wraps(function)
    def call(*arguments: Any) -> Any:
        value = watched(function, *arguments)
        if problem := wrong_kind(hook, value):
            raise PluginError(f'the loss "{loss}": {hook} at {Path(file).name}:{line} {problem}')
        return Watched(value, watched) if hook == LINKING and value is not None else value

    return call


class Watched:
    """What a plugin returned to be iterated: its code runs only then, outside of the hook."""

    def __init__(self, values: Iterable[Any], watched: Callable[..., Any]) -> None:
        """Take the values, and what calls a function of the plugin."""
        self._values, self._watched = values, watched

    def __iter__(self) -> Iterator[Any]:
        iterator = self._watched(iter, self._values)
        nothing = object()
        while (value := self._watched(next, iterator, nothing)) is not nothing:
            yield value


def failure(hook: str, error: BaseException, file: str = "") -> str:
    """Say in which hook, file and line an exception arose, and what it was.

    Args:
        hook: the hook.
        error: what was raised.
        file: the plugin's.
    """
    return f"failed in {hook} at {raised_at(error, [file])}: {type(error).__name__}: {said(error)}"


def said(error: BaseException) -> str:
    """Return what an exception of a plugin says, in one line."""
    return " ".join(text_of(error).split())


def text_of(error: BaseException) -> str:
    """Return what an exception of a plugin says; nothing where it fails to say it."""
    try:
        return str(error)
    except Exception:
        return ""


def raised_at(error: BaseException, files: Iterable[str]) -> str:
    """Return the file and line of an exception: the last line of these files that it passed, if it did."""
    known = set(files)
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if frame.filename in known), frames[-1])
    return f"{Path(last.filename).name}:{last.lineno}"


def file_of(plugin: object) -> str:
    """Return the file that a plugin was written in, or nothing where it has none."""
    code = getattr(getattr(plugin, "function", None), "__code__", None)
    return str(getattr(plugin, "__file__", None) or "") if code is None else str(code.co_filename)
