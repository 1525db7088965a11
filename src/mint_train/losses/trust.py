"""What a run folder may make this program do: it may come from somebody else, and its seal has no key."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from mint_train.errors import OptionError, UserError
from mint_train.plugins.discovery import NamedPlugin
from mint_train.plugins.sources import helper_files
from mint_train.run_folder.files import file_sha256
from mint_train.settings.fields import without_credentials
from mint_train.settings.loss_names import is_loss_file, parse_terms
from mint_train.settings.merge import VARIABLES
from mint_train.settings.model import Settings

ADDRESS_VARIABLE = VARIABLES["base_url"]


def loss_file_digests(plugins: Iterable[NamedPlugin]) -> dict[str, str]:
    """Return the SHA-256 of each file among the plugins of a loss, and of what they import, by its path."""
    files = {plugin.origin: Path(plugin.origin) for plugin in plugins if Path(plugin.origin).is_file()}
    helpers = {short(helper): helper for path in files.values() for helper in helper_files(path)}
    return {name: file_sha256(path) for name, path in {**helpers, **files}.items()}


def short(path: Path) -> str:
    """Return the name of a file from the current folder, so that it stays when both are moved."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def is_users_own(path: Path, folder: Path) -> bool:
    """Return whether a file is below the current folder, and not in a folder that may be somebody else's."""
    path = path.resolve()
    return path.is_relative_to(Path.cwd()) and not path.is_relative_to(folder.resolve())


def check_loss_files(
    expression: str, digests: Mapping[str, str], folder: Path, *, trust_loss: bool = False
) -> None:
    """Refuse to run the code of a loss file that a run folder names, unless it is plainly the user's own.

    Args:
        expression: the loss that the folder names.
        digests: by path, the SHA-256 of each loss file as the folder has it.
        folder: the run folder.
        trust_loss: the user has said that the file may be run.

    Raises:
        UserError: a file is not the one that the run was trained with.
        OptionError: a file is outside the current folder, or came with the run folder.
    """
    names = [expression] if Path(expression).is_file() else [name for _, name in parse_terms(expression)]
    for name in names:
        if is_loss_file(name) and Path(name).is_file():
            check_loss_file(name, digests, folder, trust_loss=trust_loss)
            for helper in map(short, helper_files(Path(name))):
                if helper in digests:  # an earlier version recorded none
                    refuse_changed_file(helper, digests, folder)


def check_loss_file(name: str, digests: Mapping[str, str], folder: Path, *, trust_loss: bool) -> None:
    """Refuse to run the code of one file that a run folder names, as `check_loss_files` does.

    Raises:
        UserError: it is not the file that the run was trained with.
        OptionError: it is outside the current folder, or came with the run folder.
    """
    refuse_changed_file(name, digests, folder)
    if not trust_loss and not is_users_own(Path(name), folder):
        raise OptionError(
            f"{folder} names {name} as its loss, whose code would be run; it is not one of the current "
            "folder's own files: read it, and add --trust-loss"
        )


def refuse_changed_file(name: str, digests: Mapping[str, str], folder: Path) -> None:
    """Refuse a file of code that is not the one that a run was trained with.

    Raises:
        UserError: naming it.
    """
    if digests.get(name) != file_sha256(Path(name)):
        raise UserError(
            f"{name} has changed since {folder} was trained with it; restore it, or start a new run"
        )


def check_address(recorded: Settings, given: object = None) -> None:
    """Refuse to send the key to an address that only a run folder names.

    Args:
        recorded: the settings of the run folder.
        given: the address that the command line names instead, if it does.

    Raises:
        OptionError: with the address.
    """
    address = recorded.base_url
    if given is not None or recorded.backend != "mint" or recorded.api_key is None or address is None:
        return
    if without_credentials(os.environ.get(ADDRESS_VARIABLE)) != address:
        raise OptionError(
            f"the run was trained on {address}, which {ADDRESS_VARIABLE} does not name; if that service may "
            f"have your key, add --base-url {address}"
        )


def refuse_foreign(name: str, folder: Path, *, trusted: bool) -> None:
    """Refuse a file whose code would be run, or an address that would get a key, unless it is the user's own.

    Raises:
        OptionError: it is outside the current folder, came with the rounds, or is an address.
    """
    path = Path(name)
    if not trusted and ("://" in name or (path.is_file() and not is_users_own(path, folder))):
        raise OptionError(
            f"{folder} names {name} for its loss or its judge, which would be run or asked; it is not one of "
            "the current folder's own files: look at it, and add --trust-loss"
        )
