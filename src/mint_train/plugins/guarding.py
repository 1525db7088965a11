"""A plugin that fails in a hook: one line with the plugin, the hook, its file and its line."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from inspect import unwrap
from pathlib import Path
from typing import Any

import pluggy

from mint_train.errors import DoesNotFit, MintTrainError, PluginError
from mint_train.plugins.returned import wrong_kind
from mint_train.plugins.wrapping import wrap_hooks

MATHEMATICS = "compute_loss"
"""Its exceptions are reported where the groups of the batch are known; only an exit is stopped here."""
LINKING = "link_examples"
"""Its value may be a generator, whose code runs when it is iterated."""


def guard_hooks(manager: pluggy.PluginManager) -> None:
    """Turn what the plugins raise into one line; call it once all are registered."""
    wrap_hooks(manager, guarded)


def guarded(hook: str, implementation: pluggy.HookImpl) -> Callable[..., Any]:
    """Guard what implements a loss's hook: what it raises, and a value of a wrong kind, is one line."""
    who, function = f'the loss "{implementation.plugin_name}"', implementation.function
    # a loss that is a function stands where that does, not where the class around it does
    code = getattr(unwrap(getattr(implementation.plugin, "function", None) or function), "__code__", None)
    file, line = (code.co_filename, code.co_firstlineno) if code else ("", 0)
    passing = (Exception,) if hook == MATHEMATICS else (DoesNotFit,)

    def watched(function: Callable[..., Any], *arguments: Any) -> Any:
        with HookGuard(PluginError, who, hook, file, passing):
            return function(*arguments)

    @wraps(function)
    def call(*arguments: Any) -> Any:
        value = watched(function, *arguments)
        if problem := wrong_kind(hook, value):
            raise PluginError(f"{who}: {hook} at {Path(file).name}:{line} {problem}")
        return Watched(value, watched) if hook == LINKING and value is not None else value

    return call


class HookGuard:
    """Turns what a hook raises, an exit of the program included, into one line; an error of core's passes.

    What the hook prints goes to standard error: standard output may be lines of JSON.
    """

    def __init__(
        self,
        kind: type[MintTrainError],
        who: str,
        hook: str,
        file: str = "",
        passing: tuple[type[Exception], ...] = (),
    ) -> None:
        """Guard one call.

        Args:
            kind: the error to raise.
            who: the plugin, as messages name it.
            hook: the hook.
            file: the plugin's, for the line at which the hook failed.
            passing: what passes too.
        """
        self._kind, self._who, self._hook, self._file, self._passing = kind, who, hook, file, passing

    def __enter__(self) -> None:
        # contextlib's ways of both would double what a guard costs a hook
        self._output, sys.stdout = sys.stdout, sys.stderr

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        sys.stdout = self._output
        if isinstance(error, Exception | SystemExit) and not isinstance(
            error, (MintTrainError, *self._passing)
        ):
            raise self._kind(f"{self._who} {failure(self._hook, error, self._file)}") from error


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
