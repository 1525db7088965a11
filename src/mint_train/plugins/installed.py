"""The entry points of installed plugins, which are found without importing any of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path

from mint_train.errors import PluginError, nearest
from mint_train.plugins.known_losses import not_installed
from mint_train.settings.loss_names import is_loss_file, parse_terms

LOSS_GROUP = "mint_train.losses"


def loss_entry_points() -> dict[str, list[EntryPoint]]:
    """Return the installed losses' entry points by name."""
    return entry_points_by_name(LOSS_GROUP)


def entry_points_by_name(group: str) -> dict[str, list[EntryPoint]]:
    """Return the installed entry points of a group by name, sorted, without importing any.

    A name with more than one entry point, which several distributions bring, cannot be chosen; all other
    names work.
    """
    found: dict[str, list[EntryPoint]] = {}
    for entry_point in sorted(entry_points(group=group), key=lambda entry: entry.name):
        others = found.setdefault(entry_point.name, [])
        if origin(entry_point) not in [origin(other) for other in others]:
            others.append(entry_point)
    return found


def clash(found: list[EntryPoint]) -> str | None:
    """Return the problem of a name that several distributions bring, or None."""
    if len(found) == 1:
        return None
    return f"{len(found)} distributions bring it: {' and '.join(map(origin, found))}; uninstall all but one"


def origin(entry_point: EntryPoint) -> str:
    """Return the distribution and version that an entry point belongs to."""
    return label(entry_point.dist) if entry_point.dist else entry_point.value


@cache
def label(distribution: Distribution) -> str:
    """Return a distribution's name and version; cached, as reading them parses its metadata each time."""
    return f"{distribution.name} {distribution.version}"


def find_installed(
    kind: str, name: str, installed: Mapping[str, list[EntryPoint]], advice: str
) -> EntryPoint:
    """Return the one installed entry point of a name.

    Args:
        kind: what the user calls it: "loss", "observer".
        name: the name that was asked for.
        installed: the entry points by name.
        advice: what to do where nothing is installed.

    Raises:
        PluginError: none has the name (with the nearest one and what is installed), or two have.
    """
    if name not in installed:
        names = ", ".join(installed) or f"none; {advice}"
        raise PluginError(f'no {kind} "{name}" is installed{nearest(name, installed)}; installed: {names}')
    if problem := clash(installed[name]):
        raise PluginError(f'the {kind} "{name}" cannot be chosen: {problem}')
    return installed[name][0]


def installed_loss(name: str) -> EntryPoint:
    """Return the entry point of an installed loss.

    Raises:
        PluginError: none has the name (with the nearest one, or how to install it), or two have.
    """
    installed = loss_entry_points()
    if name not in installed:
        raise PluginError(not_installed(name, installed))
    return find_installed("loss", name, installed, "install one")


def require_losses(expression: str) -> None:
    """Refuse a loss that is not installed, or a sum with one, before torch is imported.

    Raises:
        OptionError: the expression is malformed.
        PluginError: as `installed_loss` says.
    """
    if Path(expression).is_file():  # its path may hold + and *
        return
    for _, name in parse_terms(expression):
        if not is_loss_file(name):
            installed_loss(name)
