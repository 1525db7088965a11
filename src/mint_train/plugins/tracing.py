"""`MINT_TRAIN_TRACE=1`: print which plugin of a loss's chain answered each hook call."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import pluggy

from mint_train.plugins.wrapping import wrap_hooks

TRACE_VARIABLE = "MINT_TRAIN_TRACE"


def trace_hooks(manager: pluggy.PluginManager) -> None:
    """Print a line to standard error after each hook call, where the environment asks for it.

    Call it once all plugins are registered. A line reads
    `mint-train: hook flatten: answered by "dpo" (implemented by "mine", "dpo")`.
    """
    if os.environ.get(TRACE_VARIABLE, "") in ("", "0"):
        return
    answered: list[str] = []

    def recorded(_: str, implementation: pluggy.HookImpl) -> Callable[..., Any]:
        name, function = implementation.plugin_name, implementation.function

        @wraps(function)
        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            if result is not None:
                answered.append(name)
            return result

        return call

    # pluggy's monitoring is not told which implementation answered
    wrap_hooks(manager, recorded)

    def before(*_: object) -> None:
        answered.clear()

    def after(
        _outcome: pluggy.Result[Any],
        hook: str,
        implementations: Sequence[pluggy.HookImpl],
        _arguments: Mapping[str, Any],
    ) -> None:
        line = trace_line(hook, [one.plugin_name for one in implementations], answered)
        sys.stderr.write(f"{line}\n")

    manager.add_hookcall_monitoring(before, after)


def trace_line(hook: str, registered: Sequence[str], answered: Sequence[str]) -> str:
    """Say who answered a hook, and who could have.

    Args:
        hook: the hook's name.
        registered: the plugins that implement it, the base first.
        answered: those that returned a value, in the order in which they were asked.
    """
    if not registered:
        return f"mint-train: hook {hook}: no plugin implements it"
    asked = ", ".join(f'"{name}"' for name in reversed(registered))
    who = ", ".join(f'"{name}"' for name in answered) or "nobody"
    return f"mint-train: hook {hook}: answered by {who} (implemented by {asked})"
