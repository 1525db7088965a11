"""Plugins that are classes named by an entry point: found by name, and one instance created."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

from mint_train.errors import MintTrainError, PluginError
from mint_train.plugins.discovery import NamedPlugin, entry_points_by_name, find_installed, origin


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of plugin that is a class."""

    name: str
    """What the user calls it: "observer", "judge"."""
    group: str
    """The group of its entry points."""
    advice: str
    """What to do where none is installed."""


def create_plugin(
    kind: Kind, name: str, make: Callable[[Any], object] = lambda found: found()
) -> NamedPlugin:
    """Create an instance of an installed plugin's class.

    Args:
        kind: which kind of plugin.
        name: the name of its entry point.
        make: creates the instance of the class; by default without arguments.

    Raises:
        PluginError: none has this name (the message gives the nearest one and those installed), a package
            that it needs is missing (with what to install), or its class raises.
    """
    entry_point = find_installed(kind.name, name, entry_points_by_name(kind.group), kind.advice)
    who = f'the {kind.name} "{name}" of {origin(entry_point)}'
    try:
        return NamedPlugin(name, make(entry_point.load()), origin(entry_point))
    except MintTrainError:
        raise
    except ModuleNotFoundError as error:
        missing = what_to_install(entry_point, error)
        raise PluginError(
            f"{who} needs {error.name}, which is not installed: pip install '{missing}'"
        ) from error
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{who} cannot be created from {entry_point.value}: {type(error).__name__}: {error}"
        ) from error


def what_to_install(entry_point: EntryPoint, error: ModuleNotFoundError) -> str:
    """Return the distribution's extra named like the plugin, if it has one, else the missing package."""
    distribution = entry_point.dist
    extras = distribution.metadata.get_all("Provides-Extra") or [] if distribution else []
    if distribution and entry_point.name in extras:
        return f"{distribution.name}[{entry_point.name}]"
    return str(error.name).partition(".")[0]
