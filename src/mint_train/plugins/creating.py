"""Plugins that are classes named by an entry point: found by name, and one instance created."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

from mint_train.errors import MintTrainError, PluginError
from mint_train.plugins.discovery import NamedPlugin
from mint_train.plugins.guarding import said
from mint_train.plugins.installed import entry_points_by_name, find_installed, origin


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
            f"{who} needs {error.name}, which is not installed: pip install {missing}"
        ) from error
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{who} cannot be created from {entry_point.value}: {type(error).__name__}: {said(error)}"
        ) from error


def what_to_install(entry_point: EntryPoint, error: ModuleNotFoundError) -> str:
    """Return what the distribution's extra named like the plugin requires, or else the missing package."""
    asked = re.compile(rf"extra\s*==\s*['\"]{re.escape(entry_point.name)}['\"]")
    distribution = entry_point.dist
    required = [text for text in (distribution.requires or [] if distribution else []) if asked.search(text)]
    packages = [text.partition(";")[0].strip() for text in required]
    return shlex.join(packages or [str(error.name).partition(".")[0]])
