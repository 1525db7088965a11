"""The loss of a run that is there already."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

from mint_train.errors import OptionError, UserError
from mint_train.losses.loss import Loss
from mint_train.losses.trust import check_loss_file
from mint_train.losses.weighted_sum import open_loss
from mint_train.plugins.authoring import FunctionLoss
from mint_train.plugins.discovery import NamedPlugin
from mint_train.plugins.functions import SCRIPT, find_function, is_importable, named_function
from mint_train.run_folder.description import FunctionDescription, RunDescription
from mint_train.settings.model import Settings
from mint_train.settings.recorded import different_run


def open_run_loss(
    recorded: RunDescription,
    folder: Path,
    settings: Settings,
    function: FunctionLoss | None = None,
    *,
    trust_loss: bool = False,
) -> Loss:
    """Open the loss that the settings of a run name.

    Args:
        recorded: what the run's folder says of it.
        folder: the run's folder.
        settings: those of the run, perhaps with another loss to evaluate it with.
        function: the loss, if it is a function of the calling program.
        trust_loss: run a file that is not one of the current folder's own.

    Raises:
        UserError: the loss is a function that only its own program can give, or it has changed.
        OptionError: its file is outside the current folder, or came with the run folder.
        PluginError: the loss is missing or broken.
    """
    if function is not None:
        return Loss.of(named_function(function), settings.options)
    if recorded.function is not None and settings.loss == recorded.loss:
        return Loss.of(find_again(recorded, folder, trust_loss=trust_loss), settings.options)
    return open_loss(settings.loss, settings.options)


def find_again(recorded: RunDescription, folder: Path, *, trust_loss: bool) -> NamedPlugin:
    """Return the function of a Python program that a run was trained with.

    Raises:
        UserError: as `open_run_loss` does.
    """
    described = recorded.function
    assert described is not None  # noqa: S101 - the caller looked
    if not is_importable(described):
        kind = f"of {described.file}" if described.file else "of a notebook"
        kind = "of a program" if described.file is None and described.module != SCRIPT else kind
        raise UserError(
            f'the loss "{recorded.loss}" of {folder} is a function {kind}; call '
            f'mint_train.resume("{folder}", loss={recorded.loss}) there, or evaluate or sample'
        )
    if not Path(str(described.file)).is_file():
        raise UserError(
            f'{described.file} is gone, which held the loss "{recorded.loss}" of {folder}; restore it, or '
            f"give the function: mint_train.resume(..., loss={recorded.loss})"
        )
    check_loss_file(str(described.file), recorded.loss_files, folder, trust_loss=trust_loss)
    return find_function(described)


def changed_options(recorded: RunDescription, loss: Loss) -> Iterator[tuple[str, Any, Any]]:
    """Yield the options that are not those that a run began with: the name, the value now, and that of then.

    Raises:
        OptionError: a plugin does not have an option any more.
    """
    for term, part in zip(loss.terms, recorded.losses, strict=True):
        now = term.options.model_dump(mode="json")
        if gone := part.options.keys() - now.keys():
            raise OptionError(
                f'"{term.name}" has no option {min(gone)} any more, with which the run began: the plugin has '
                f"changed; install {part.plugins.get(term.name)}"
            )
        for name, before in part.options.items():
            unordered = isinstance(getattr(term.options, name, None), set | frozenset)
            if not is_same(now[name], before, unordered=unordered):
                yield f"{term.name}." * loss.is_sum + name, now[name], before


def is_same(now: Any, recorded: Any, *, unordered: bool) -> bool:
    """Return whether the value of an option is the one that `run.json` has, where infinity may be null."""
    if isinstance(now, float) and not math.isfinite(now):
        return recorded is None or repr(recorded) == repr(now)
    if unordered and isinstance(recorded, list):
        return sorted(map(repr, now)) == sorted(map(repr, recorded))
    return bool(now == recorded)


def refuse_other_loss(recorded: RunDescription, loss: Loss, given: Container[str]) -> None:
    """Refuse a loss that is not the one that a run began with, or that has other options.

    Args:
        recorded: the run.
        loss: its loss, opened again.
        given: the options that the user gave, then or now; any other has the plugin's default.

    Raises:
        OptionError: it has another name; a function of a program has another code; or naming the first option
            that differs, and both values.
    """
    if loss.name != recorded.loss:
        raise OptionError(different_run(f"--loss {loss.name}", recorded.loss))
    function = next((link.function for link in loss.plugins if link.function), None)
    if function is not None and is_other_code(recorded.function, function):
        raise OptionError(
            f"the function {function.name} has changed since this run began; restore it, or start a new one"
        )
    for name, now, before in changed_options(recorded, loss):
        if is_given(name, given):
            raise OptionError(different_run(f"--set {name}={now}", before))
        raise default_changed(name, now, before)


def is_other_code(before: FunctionDescription | None, now: FunctionDescription) -> bool:
    """Return whether a function does something else than it did, as far as one version of Python can tell."""
    if before is None or before.code is None or now.code is None:
        return False
    (version, _, digest), (own_version, _, own_digest) = (
        code.rpartition(" ") for code in (before.code, now.code)
    )
    return version == own_version and digest != own_digest


def refuse_other_defaults(recorded: RunDescription, loss: Loss, given: Container[str]) -> None:
    """Refuse options that nobody gives and that are not those that a run began with, as above."""
    for name, now, before in changed_options(recorded, loss):
        if not is_given(name, given):
            raise default_changed(name, now, before)


def is_given(name: str, given: Container[str]) -> bool:
    """Return whether an option is given, by its whole name or without that of its term, for all terms."""
    return name in given or name.rpartition(".")[2] in given


def default_changed(name: str, value: object, before: object) -> OptionError:
    """Say that a plugin has another default than when a run began."""
    return OptionError(
        f"option {name} is {value} by default now, and the run began with {before}: the plugin has changed; "
        f"add --set {name}={before}"
    )


def tell_changed_plugins(recorded: RunDescription, loss: Loss, tell: Callable[[str], None]) -> None:
    """Say which plugins of a loss have another version than when a run began."""
    for link in loss.plugins:
        before = recorded.plugins.get(link.name, link.origin)
        if before != link.origin:
            tell(f'The plugin "{link.name}" is {link.origin} now; the run began with {before}.')
