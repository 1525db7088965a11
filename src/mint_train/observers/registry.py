"""The observers of a run: the display, the loss's own hooks, and the trackers that `--track` names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from typing import Any

import pluggy

from mint_train.errors import OptionError
from mint_train.losses.loss import Loss
from mint_train.observers.display import open_display
from mint_train.plugins.creating import Kind, create_plugin
from mint_train.plugins.discovery import NamedPlugin, check_hooks
from mint_train.plugins.functions import PROGRAM
from mint_train.plugins.guarding import text_of
from mint_train.plugins.hookspecs import PROJECT, ObserverSpec
from mint_train.settings.model import Settings
from mint_train.settings.wrong_values import described

OBSERVER = Kind("observer", "mint_train.observers", "install some, such as mint-train-trackers")
LONGEST_PROBLEM = 200


class Observers:
    """All who hear of one run. Each event is a hook call: `observers.hook.step_finished(step=record)`."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(ObserverSpec)
        self.hook = self.manager.hook

    def notice(self, text: str) -> None:
        """Show the user one line."""
        self.hook.notice(text=text, warning=False)

    def warn(self, text: str) -> None:
        """Warn the user in one line of something that does not end the run."""
        self.hook.notice(text=text, warning=True)

    def add(self, observer: object) -> None:
        """Register an observer whose failure is the run's failure: one of core's own."""
        self.manager.register(observer)

    def add_guarded(self, kind: str, observer: NamedPlugin) -> None:
        """Register the observer hooks of a plugin, if it has any; the run survives their failure.

        Args:
            kind: what the user calls the plugin: "loss", "observer".
            observer: the plugin.
        """
        guarded = Guarded(self, f'the {kind} "{observer.name}"', observer.plugin)
        if guarded.has_hooks:
            self.manager.register(guarded)


@contextmanager
def open_observers(
    settings: Settings, loss: Loss, silent: bool = False, others: Sequence[object] | None = ()
) -> Iterator[Observers]:
    """Yield the observers of one run: the plugins of its loss, the display, and the named trackers.

    Args:
        settings: their `progress` chooses the display, their `track` the trackers.
        loss: the run's loss; each plugin of each of its parts is heard once.
        silent: leave the display out.
        others: observers of the calling program.

    Raises:
        OptionError: the program's observers are not a list.
        PluginError: an observer is missing or broken, or what it needs is not installed.
    """
    others = () if others is None else others
    if isinstance(others, str) or not isinstance(others, Sequence):
        raise OptionError(f"observers is {described(others)}; give a list of observers")
    observers = Observers()
    trackers = [load_observer(name) for name in dict.fromkeys(settings.track)]
    trackers += [NamedPlugin(type(other).__name__, other, PROGRAM) for other in others]
    for tracker in trackers:
        check_hooks(observers.manager, tracker, "observer", ObserverSpec)
    for plugin in loss.plugins:
        observers.add_guarded("loss", plugin)
    with open_display("silent" if silent else settings.progress) as display:
        observers.add(display)
        for tracker in trackers:
            observers.add_guarded("observer", tracker)
        yield observers


def load_observer(name: str) -> NamedPlugin:
    """Create one installed observer: its entry point names a class, which is called without arguments.

    Raises:
        PluginError: no observer has this name (the message gives the nearest one and those installed), a
            package that it needs is missing (with what to install), or its class raises.
    """
    return create_plugin(OBSERVER, name)


class Guarded:
    """The observer hooks of a plugin; the first exception is reported in one line and disables them."""

    def __init__(self, observers: Observers, who: str, plugin: object) -> None:
        self.observers = observers
        self.who = who
        self.failed = False
        self.has_hooks = False
        for name in dir(plugin):
            options = observers.manager.parse_hookimpl_opts(plugin, name)
            # the other hooks of a loss plugin are not the observers' business
            if options is not None and hasattr(ObserverSpec, options.get("specname") or name):
                setattr(self, name, self.guard(name, getattr(plugin, name)))
                self.has_hooks = True

    def guard(self, hook: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the implementation of a hook; what it prints goes to standard error."""

        @wraps(method)  # the hook's marker and arguments too
        def call(*arguments: Any) -> None:
            if self.failed:
                return
            try:
                with redirect_stdout(sys.stderr):
                    method(*arguments)
            except (Exception, SystemExit) as error:
                self.failed = True
                problem = (text_of(error).strip().splitlines() or [""])[0][:LONGEST_PROBLEM]
                self.observers.warn(
                    f"{self.who} failed in {hook} and is disabled for the rest of this run: "
                    f"{type(error).__name__}: {problem}"
                )

        return call
