"""A loss from a file: `--loss ./my_loss.py`."""

from __future__ import annotations

import sys
import traceback
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pluggy

from mint_train.errors import PluginError
from mint_train.plugins.authoring import FunctionLoss
from mint_train.plugins.hookspecs import PROJECT


def load_loss_file(name: str) -> object:
    """Import a file and return the one loss in it: a function under `@loss`, or the module with its hooks.

    Raises:
        PluginError: the file is missing, cannot be imported (with its line), or does not hold one loss.
    """
    path = Path(name)
    if not path.is_file():
        reason = "it is a folder; name the file in it" if path.is_dir() else "no such file"
        raise PluginError(f"--loss {name}: {reason}; an installed loss is named without a path")
    module = import_file(path)
    functions = {
        id(value): value
        for value in vars(module).values()
        if isinstance(value, FunctionLoss) and value.function.__module__ == module.__name__
    }
    found: dict[str, object] = {loss.__name__: loss for loss in functions.values()}
    if has_hooks(module):
        found["the module's own hooks"] = module
    if not found:
        raise PluginError(
            f'{name} holds no loss: put @mint_train.loss(extends="dpo") on its function, '
            "or @mint_train.hookimpl on its hooks"
        )
    if len(found) > 1:
        raise PluginError(f"{name} holds {len(found)} losses: {', '.join(found)}; keep one in a file")
    return next(iter(found.values()))


def import_file(path: Path) -> ModuleType:
    """Import a file as a module named by its stem; a failed import leaves nothing behind.

    Raises:
        PluginError: with the line that failed; or another module has the name already.
    """
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and Path(getattr(known, "__file__", None) or "").resolve() != path.resolve():
        raise PluginError(f'{path}: a module "{name}" is in use already; give the file another name')
    spec = spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} is not a Python file; its name must end in .py")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(f"{path}{failing_line(error, path)}: {type(error).__name__}: {error}") from error
    return module


def failing_line(error: BaseException, path: Path) -> str:
    """Return `:LINE` of the last line of a file in an error's traceback, or nothing."""
    if isinstance(error, SyntaxError) and error.filename == str(path.resolve()):
        return f":{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path.resolve())]
    return f":{lines[-1]}" if lines else ""


def has_hooks(module: ModuleType) -> bool:
    """Return whether a module marks any function with @hookimpl."""
    manager = pluggy.PluginManager(PROJECT)
    return any(manager.parse_hookimpl_opts(module, name) is not None for name in dir(module))
