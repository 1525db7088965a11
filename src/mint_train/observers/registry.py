"""The observers of a run: the display, and the trackers that `--track` names, found by their entry points."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from importlib.metadata import EntryPoint
from typing import Any

import click
import pluggy

from mint_train.errors import PluginError
from mint_train.losses.loss import Loss
from mint_train.observers.display import open_display
from mint_train.plugins.discovery import (
    NamedPlugin,
    check_hooks,
    entry_points_by_name,
    find_installed,
    origin,
)
from mint_train.plugins.hookspecs import ObserverSpec

OBSERVER_GROUP = "mint_train.observers"
LONGEST_PROBLEM = 200


@contextmanager
def observed(loss: Loss, progress: str, track: Sequence[str]) -> Iterator[None]:
    """Register the display and the named observers with a loss's hooks, for one run.

    Raises:
        PluginError: an observer is missing or broken, or what it needs is not installed.
    """
    observers = [load_observer(name) for name in dict.fromkeys(track)]
    for observer in observers:
        check_hooks(loss.manager, observer, "observer", ObserverSpec)
    with open_display(progress) as display:
        loss.manager.register(display)
        for observer in observers:
            loss.manager.register(Guarded(loss.manager, observer))
        yield


def load_observer(name: str) -> NamedPlugin:
    """Make one installed observer: its entry point names a class, which is called without arguments.

    Raises:
        PluginError: no such observer (with the nearest name and what is installed), a package that it needs
            is missing (with what to install), or it cannot be made.
    """
    entry_point = find_installed(
        "observer", name, entry_points_by_name(OBSERVER_GROUP), "install some, such as mint-train-trackers"
    )
    who = f'the observer "{name}" of {origin(entry_point)}'
    try:
        return NamedPlugin(name, entry_point.load()(), origin(entry_point))
    except ModuleNotFoundError as error:
        missing = what_to_install(entry_point, error)
        raise PluginError(
            f"{who} needs {error.name}, which is not installed: pip install '{missing}'"
        ) from error
    except Exception as error:
        raise PluginError(
            f"{who} cannot be made from {entry_point.value}: {type(error).__name__}: {error}"
        ) from error


def what_to_install(entry_point: EntryPoint, error: ModuleNotFoundError) -> str:
    """Name the distribution's extra of the observer's name, where it has one, else the missing package."""
    distribution = entry_point.dist
    extras = distribution.metadata.get_all("Provides-Extra") or [] if distribution else []
    if distribution and entry_point.name in extras:
        return f"{distribution.name}[{entry_point.name}]"
    return str(error.name).partition(".")[0]


class Guarded:
    """An observer whose failure is told in one line and ends its watching, never the run."""

    def __init__(self, manager: pluggy.PluginManager, observer: NamedPlugin) -> None:
        self.name = observer.name
        self.failed = False
        for name in dir(observer.plugin):
            if manager.parse_hookimpl_opts(observer.plugin, name) is not None:
                setattr(self, name, self.guard(name, getattr(observer.plugin, name)))

    def guard(self, hook: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a hook's implementation; what it prints goes to standard error."""

        @wraps(method)  # the hook's marker and arguments too
        def call(*arguments: Any) -> None:
            if self.failed:
                return
            try:
                with redirect_stdout(sys.stderr):
                    method(*arguments)
            except Exception as error:
                self.failed = True
                problem = (str(error).strip().splitlines() or [""])[0][:LONGEST_PROBLEM]
                click.echo(
                    f'mint-train: the observer "{self.name}" failed in {hook} and is told no more of this '
                    f"run: {type(error).__name__}: {problem}",
                    err=True,
                )

        return call
