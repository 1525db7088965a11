"""Finding loss plugins by their entry points, choosing one with what it extends, and refusing broken ones."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pluggy

from mint_train.errors import PluginError, nearest
from mint_train.plugins.guarding import guard_hooks, said
from mint_train.plugins.hookspecs import (
    CONTRACT_VERSION,
    NOT_INHERITED,
    PROJECT,
    LossSpec,
    ObserverSpec,
)
from mint_train.plugins.installed import installed_loss, origin
from mint_train.plugins.judge_hookspecs import JudgeSpec, RowWriterSpec
from mint_train.plugins.loss_files import load_loss_file
from mint_train.plugins.tracing import trace_hooks
from mint_train.run_folder.description import FunctionDescription
from mint_train.settings.loss_names import is_loss_file, loss_label


@dataclass(frozen=True, slots=True)
class NamedPlugin:
    """A loaded plugin, with the name that the user asked for and its origin."""

    name: str
    plugin: object
    origin: str
    function: FunctionDescription | None = None
    """Where it stands, if it is a function of the calling program."""

    @property
    def extends(self) -> str | None:
        """The loss that it inherits from, or None."""
        return getattr(self.plugin, "EXTENDS", None)


def load_plugin(name: str) -> NamedPlugin:
    """Import the plugin of one installed loss, or of a file such as `./my_loss.py`.

    Raises:
        PluginError: no such loss (with the nearest name, or how to install it), or its import fails.
    """
    if is_loss_file(name):
        return NamedPlugin(loss_label(name), load_loss_file(name), name)
    entry_point = installed_loss(name)
    try:
        plugin = entry_point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f'the loss "{name}" of {origin(entry_point)} cannot be imported from {entry_point.value}: '
            f"{type(error).__name__}: {said(error)}"
        ) from error
    return NamedPlugin(name, plugin, origin(entry_point))


def load_chain(first: NamedPlugin) -> list[NamedPlugin]:
    """Return a plugin and all that it extends, the base first.

    Raises:
        PluginError: a loss in the chain is missing or broken, or the chain is a circle.
    """
    chain = [first]
    while (base := chain[-1].extends) is not None:
        names = [link.name for link in chain]
        if base in names:
            circle = " extends ".join([*names[names.index(base) :], base])
            raise PluginError(f"a circle of losses: {circle}; one of them must not extend another")
        try:
            chain.append(load_plugin(base))
        except PluginError as error:
            raise PluginError(f'the loss "{names[-1]}" extends "{base}": {error}') from error
    return chain[::-1]


def make_manager(chain: list[NamedPlugin]) -> pluggy.PluginManager:
    """Register a chain of plugins, the base first: pluggy asks the plugin registered last first.

    Raises:
        PluginError: a plugin breaks the hook contract; nothing stays registered.
    """
    manager = manager_of(chain, "loss", LossSpec, ObserverSpec)
    guard_hooks(manager)
    trace_hooks(manager)
    return manager


def manager_of(links: Sequence[NamedPlugin], kind: str, spec: type, *others: type) -> pluggy.PluginManager:
    """Register plugins, the first one first.

    Args:
        links: the plugins.
        kind: what they are, as messages call them.
        spec: the hooks that the manager calls.
        others: hooks that the plugins may implement too.

    Raises:
        PluginError: a plugin breaks the hook contract.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(spec)
    for link in links:
        check_hooks(manager, link, kind, spec, *others)
        manager.register(link.plugin, name=link.name)
    return manager


def check_options(manager: pluggy.PluginManager, chain: list[NamedPlugin]) -> None:
    """Refuse options that an inherited hook cannot read.

    A hook that takes `options` was written for the model of its plugin, which that plugin may have inherited.
    The hook can read that model and its subclasses.

    Raises:
        PluginError: naming the loss, the hook and both models.
    """
    positions = {id(link.plugin): position for position, link in enumerate(chain)}
    models: dict[int, Any] = {}
    for implementation in manager.hook.loss_options.get_hookimpls():
        models[positions[id(implementation.plugin)]] = implementation.function()

    def model_at(position: int) -> Any:
        known = [models[n] for n in sorted(models) if n <= position and models[n] is not None]
        return known[-1] if known else None

    final = model_at(len(chain) - 1)
    for hook in hook_arguments(LossSpec):
        if hook in NOT_INHERITED:
            continue
        caller = getattr(manager.hook, hook)
        implementations = caller.get_hookimpls()
        if caller.spec.opts["firstresult"]:
            implementations = implementations[-1:]  # the others are overridden
        for implementation in implementations:
            base = chain[positions[id(implementation.plugin)]]
            expected = model_at(positions[id(implementation.plugin)])
            if "options" in implementation.argnames and expected and not issubclass(final, expected):
                raise PluginError(
                    f'the loss "{chain[-1].name}" replaces the options of "{base.name}" by {final.__name__}, '
                    f'which the inherited hook "{hook}" cannot read: derive it from {expected.__name__}, '
                    "or implement the hook"
                )


def check_hooks(manager: pluggy.PluginManager, link: NamedPlugin, kind: str = "loss", *specs: type) -> None:
    """Refuse what pluggy lets pass: an unknown hook, a wrong argument, a missing marker, no hook at all.

    Args:
        manager: knows the hooks' marker.
        link: the plugin.
        kind: what the plugin is, as messages call it.
        specs: the hooks that it may implement; without any, all.
    """
    who = f'the {kind} "{link.name}" of {link.origin}'
    version = getattr(link.plugin, "CONTRACT_VERSION", CONTRACT_VERSION)
    if version != CONTRACT_VERSION:
        raise PluginError(
            f"{who} was written for version {version} of the hook contract; this is version "
            f"{CONTRACT_VERSION}: install a release of it that fits"
        )
    known = hook_arguments(*specs)
    implemented = dict(implemented_hooks(manager, link.plugin))
    if kind == "loss":
        check_order(manager, link.plugin, who)
    for hook, arguments in implemented.items():
        if hook not in known:
            raise PluginError(f'{who} implements a hook "{hook}" that does not exist{nearest(hook, known)}')
        check_arguments(f'{who}: hook "{hook}"', arguments, known[hook])
    for hook in known:
        if hook not in implemented and inspect.isroutine(getattr(link.plugin, hook, None)):
            raise PluginError(f'{who} has a function "{hook}" without @hookimpl: it would never be called')
    if not implemented:
        hint = ", or put @mint_train.loss on its function" if kind == "loss" else ""
        raise PluginError(f"{who} implements no hook; see docs/hooks.md{hint}")


def check_arguments(hook: str, declared: Sequence[inspect.Parameter], known: Sequence[str]) -> None:
    """Refuse arguments that a hook is not called with: unknown ones, and those that pluggy may leave out.

    Args:
        hook: the plugin and the hook, as a message calls them.
        declared: what the implementation declares.
        known: what the hook has.

    Raises:
        PluginError: naming the first such argument.
    """
    for argument in declared:
        if argument.name not in known:
            raise PluginError(
                f'{hook} has no argument "{argument.name}"{nearest(argument.name, known)}; '
                f"its arguments: {', '.join(known) or 'none'}"
            )
        if argument.default is not argument.empty or argument.kind is argument.KEYWORD_ONLY:
            problem = "by keyword only" if argument.default is argument.empty else "with a default"
            raise PluginError(
                f'{hook} takes its argument "{argument.name}" {problem}; write a plain "{argument.name}", '
                "which is always given"
            )


def check_order(manager: pluggy.PluginManager, plugin: object, who: str) -> None:
    """Refuse a hook that asks pluggy for its place in the chain, where a base could replace what extends it.

    Raises:
        PluginError: naming the plugin and the hook.
    """
    for attribute in dir(plugin):
        options: Any = manager.parse_hookimpl_opts(plugin, attribute) or {}
        for place in ("tryfirst", "trylast"):
            if options.get(place):
                raise PluginError(
                    f'{who}: hook "{options.get("specname") or attribute}" has @hookimpl({place}=True), but '
                    f"the most derived loss always answers first; leave {place} out"
                )


def hook_arguments(*specs: type) -> dict[str, tuple[str, ...]]:
    """Return the contract, or some parts of it: each hook's name with its arguments' names."""
    return {
        name: tuple(inspect.signature(function).parameters)[1:]
        for spec in specs or (LossSpec, ObserverSpec, JudgeSpec, RowWriterSpec)
        for name, function in vars(spec).items()
        if not name.startswith("_")
    }


def implemented_hooks(
    manager: pluggy.PluginManager, plugin: object
) -> Iterator[tuple[str, list[inspect.Parameter]]]:
    """Yield the hooks that a plugin marks as implemented, with the arguments that it declares."""
    for attribute in dir(plugin):
        options: Any = manager.parse_hookimpl_opts(plugin, attribute)
        if options is not None:
            arguments = inspect.signature(getattr(plugin, attribute)).parameters
            yield options.get("specname") or attribute, list(arguments.values())
