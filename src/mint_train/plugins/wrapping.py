"""Putting something around every hook of the plugins that are registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pluggy


def wrap_hooks(
    manager: pluggy.PluginManager, wrap: Callable[[str, pluggy.HookImpl], Callable[..., Any]]
) -> None:
    """Replace each function that implements a hook.

    Args:
        manager: with all plugins registered.
        wrap: returns the new function, given the hook's name and the implementation.
    """
    for _, plugin in manager.list_name_plugin():
        for caller in manager.get_hookcallers(plugin) or ():
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin:
                    implementation.function = wrap(caller.name, implementation)  # type: ignore[misc]
