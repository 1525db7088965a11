"""A plugin that fails in a hook: one line with the plugin, the hook, its file and its line."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import wraps
from pathlib import Path
from typing import Any

import pluggy

from mint_train.errors import DoesNotFit, MintTrainError, PluginError

MATHEMATICS = "compute_loss"
"""Its exceptions are reported where the groups of the batch are known; only an exit is stopped here."""


def guard_hooks(manager: pluggy.PluginManager) -> None:
    """Turn what a plugin raises, an exit of the program included, into one line; call it once all are there.

    What a plugin prints goes to standard error: standard output may be lines of JSON.
    """
    for name, plugin in manager.list_name_plugin():
        for caller in manager.get_hookcallers(plugin) or ():
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin:
                    implementation.function = guarded(  # type: ignore[misc]
                        name, caller.name, implementation.function
                    )


def guarded(loss: str, hook: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the implementation of a hook."""

    @wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            with redirect_stdout(sys.stderr):
                return function(*arguments)
        except (MintTrainError, DoesNotFit):
            raise
        except (Exception, SystemExit) as error:
            if hook == MATHEMATICS and not isinstance(error, SystemExit):
                raise
            raise PluginError(f'the loss "{loss}" {failure(hook, error)}') from error

    return call


def failure(hook: str, error: BaseException) -> str:
    """Say in which hook, file and line an exception arose, and what it was."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    says = " ".join(str(error).split())
    return f"failed in {hook} at {Path(last.filename).name}:{last.lineno}: {type(error).__name__}: {says}"
