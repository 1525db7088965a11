"""A loss that is a function of a Python program: where it stands, and how a later command finds it there."""

from __future__ import annotations

import inspect
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from mint_train.errors import PluginError
from mint_train.plugins.authoring import FunctionLoss
from mint_train.plugins.discovery import NamedPlugin
from mint_train.plugins.loss_files import import_file
from mint_train.plugins.sources import function_digest
from mint_train.run_folder.description import FunctionDescription

PROGRAM = "this program"
"""The origin of a function that no file holds, such as one of a notebook."""
SCRIPT = "__main__"


def named_function(loss: FunctionLoss) -> NamedPlugin:
    """Return a function of the calling program as a plugin."""
    described = describe_function(loss)
    return NamedPlugin(loss.__name__, loss, described.file or PROGRAM, described)


def describe_function(loss: FunctionLoss) -> FunctionDescription:
    """Say where a function stands."""
    function = loss.function
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        file = None
    return FunctionDescription(
        name=function.__qualname__,
        module=function.__module__,
        file=os.path.realpath(file) if file and Path(file).is_file() else None,
        code=function_digest(function),
    )


def is_importable(described: FunctionDescription) -> bool:
    """Return whether a function is at the top of a module that is imported, and not of a script or notebook.

    To import a script would run it again.
    """
    return described.file is not None and described.module != SCRIPT and "." not in described.name


def find_function(described: FunctionDescription) -> NamedPlugin:
    """Import the module of a function that is importable, and return the function.

    Raises:
        PluginError: the file cannot be imported, or no longer holds the function.
    """
    file = Path(str(described.file))
    found = getattr(module_of(described.module, file), described.name, None)
    if not isinstance(found, FunctionLoss):
        raise PluginError(f"{file} no longer holds the loss {described.name}; restore it")
    return NamedPlugin(described.name, found, str(file), described)


def module_of(name: str, file: Path) -> ModuleType:
    """Import a module by its name where that leads to its file, else by the file."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.origin and os.path.realpath(spec.origin) == str(file):
        try:
            return import_module(name)
        except (Exception, SystemExit) as error:
            raise PluginError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    known = sys.modules.get(name)
    if known is not None and os.path.realpath(getattr(known, "__file__", None) or "") == str(file):
        return known
    return import_file(file)
