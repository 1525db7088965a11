"""The files that code was written in, and digests of them: what it made is kept as long as they stay."""

from __future__ import annotations

import hashlib
import inspect
import re
import site
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dis import get_instructions
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from uuid import uuid4

from mint_train.plugins.installed import loss_entry_points

IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+(\w+)[\w.]*[ \t]+import|import[ \t]+([^#\n]+))", re.M)
LIBRARIES = (sysconfig.get_path("stdlib"), *site.getsitepackages(), site.getusersitepackages())
"""Folders whose modules are installed, and change with a version that a plugin's own helpers do not have."""
OUTER_ASSIGNMENTS = frozenset({"STORE_GLOBAL", "STORE_DEREF", "DELETE_GLOBAL", "DELETE_DEREF"})
LARGE = 2**22
"""Bytes from which a file, such as weights in a package, is identified by its size and time instead."""


def source_of(function: Any) -> Path | None:
    """Return the package folder, or the file, that a plugin's function was written in."""
    module = function.__module__ or ""  # what was made by exec has none
    package = getattr(sys.modules.get(module.partition(".")[0]), "__path__", None)
    if package:
        return Path(next(iter(package)))
    with suppress(TypeError):
        return Path(inspect.getfile(inspect.unwrap(function)))
    return None


def with_helpers(source: Path | None) -> list[Path | None]:
    """Return a package folder or a file, and those of all modules that it imports and that are not installed.

    What is imported by a name that is only made while it runs is not found.
    """
    found: list[Path | None] = [source]
    for path in found:  # grows while it is read
        for name in dict.fromkeys(name for file in python_files(path) for name in imported_names(file)):
            helper = own_module(name, tuple(sys.path))
            if helper is not None and helper not in found:
                found.append(helper)
    return found


def helper_files(file: Path) -> list[Path]:
    """Return the Python files of all modules that a file imports and that are not installed."""
    return [each for path in with_helpers(file)[1:] for each in python_files(path)]


def python_files(path: Path | None) -> list[Path]:
    """Return the Python files of a folder, or the one that a path is."""
    if path is None or not path.exists():
        return []
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def imported_names(file: Path) -> Iterator[str]:
    """Yield the top names of the modules that a file imports, relative ones left out."""
    for match in IMPORT.finditer(file.read_text(encoding="utf-8", errors="replace")):
        names = [match[1]] if match[1] else match[2].split(",")
        yield from (name.split()[0].partition(".")[0] for name in names if name.split())


@cache
def own_module(name: str, places: tuple[str, ...]) -> Path | None:  # noqa: ARG001 - what is found depends on them
    """Return the folder or the file of a module that is neither installed nor core; None for any other.

    Args:
        name: of the module, without that of a package in it.
        places: where modules are looked for, `sys.path`.
    """
    if name in sys.stdlib_module_names or name == __name__.partition(".")[0]:
        return None
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    path = Path(next(iter(spec.submodule_search_locations or [spec.origin or ""]), ""))
    installed = str(path.resolve()).startswith(LIBRARIES) or any(path.parent.glob("*.dist-info"))
    return None if not path.exists() or installed or name in plugin_modules() else path


def plugin_modules() -> set[str]:
    """Return the top names of the modules of installed losses, which have a version, wherever they are."""
    return {entry.module.partition(".")[0] for found in loss_entry_points().values() for entry in found}


def sources_digest(paths: Iterable[Path | None]) -> str:
    """Digest files, those of folders included: an editable install changes without a new version.

    What is not there gets a digest that is never found again.
    """
    digest = hashlib.sha256()
    for path in paths:
        if path is None or not path.exists():
            return uuid4().hex
        for file in files_of(path):
            digest.update(content_of(file))
    return digest.hexdigest()


def files_of(path: Path) -> list[Path]:
    """Return a file, or those of a folder that Python did not write itself."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def content_of(file: Path) -> bytes:
    """Return what identifies a file's content."""
    known = file.stat()
    return f"{known.st_size} {known.st_mtime_ns}".encode() if known.st_size >= LARGE else file.read_bytes()


def function_digest(function: Callable[..., Any]) -> str:
    """Digest the code of a function, of those of its module that it calls, and plain values that they use.

    A function of a notebook has no file, and all lambdas have one name.

    Returns:
        The version of Python, whose code it is, and the digest: only those of one version can be compared.
    """
    digest = hashlib.sha256("\n".join(said_by(function, set())).encode()).hexdigest()
    return f"python {sys.version_info.major}.{sys.version_info.minor} {digest}"


def said_by(function: Any, seen: set[int]) -> Iterator[str]:
    """Yield what decides what a function returns, as far as it is code and plain values."""
    if isinstance(function, partial):
        yield from map(repr, filter(is_plain, [*function.args, *function.keywords.items()]))
        function = function.func
    owner = getattr(function, "__self__", None)
    plain = getattr(function, "__func__", function)
    if not isinstance(plain, FunctionType):
        owner, plain = plain, vars(type(plain)).get("__call__")
    if not isinstance(plain, FunctionType) or id(plain) in seen:
        yield getattr(function, "__qualname__", type(function).__qualname__)
        return
    seen.add(id(plain))
    if owner is not None and not isinstance(owner, ModuleType):
        yield from (f"{name} {value!r}" for name, value in state_of(owner).items() if is_plain(value))
    codes = list(codes_of(plain.__code__))
    for code in codes:
        yield from (code.co_code.hex(), repr(code.co_varnames), repr(code.co_names))
        # a set has no order of its own
        yield from (repr(sorted(map(repr, each)) if isinstance(each, frozenset) else each)
                    for each in code.co_consts if not isinstance(each, CodeType))  # fmt: skip
    for value in [*(plain.__defaults__ or ()), *(plain.__kwdefaults__ or {}).items(), *used_by(plain, codes)]:
        if is_plain(value):
            yield repr(value)
        elif isinstance(value, FunctionType | MethodType | BuiltinFunctionType | partial):
            yield from said_by(value, seen)


def state_of(owner: object) -> dict[str, Any]:
    """Return the attributes of an object that none of its methods sets, but the one that makes it."""
    methods = {name: each for name, each in vars(type(owner)).items() if isinstance(each, FunctionType)}
    codes = [code for name, each in methods.items() if name != "__init__" for code in codes_of(each.__code__)]
    changed = {
        step.argval for code in codes for step in get_instructions(code) if step.opname == "STORE_ATTR"
    }
    return {name: value for name, value in getattr(owner, "__dict__", {}).items() if name not in changed}


def used_by(function: FunctionType, codes: Sequence[CodeType]) -> Iterator[Any]:
    """Yield the values of the outer names that a function reads, and does not count with or change.

    Functions of other modules have versions of their own.
    """
    changed = {
        step.argval for code in codes for step in get_instructions(code) if step.opname in OUTER_ASSIGNMENTS
    }
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    outer = {name: cell.cell_contents for name, cell in cells if cell != CellType()}
    for name in dict.fromkeys(name for code in codes for name in (*code.co_freevars, *code.co_names)):
        value = outer.get(name, function.__globals__.get(name))
        is_others = name not in outer and getattr(value, "__module__", None) != function.__module__
        if name not in changed and (is_plain(value) or not is_others):
            yield value


def codes_of(code: CodeType) -> Iterator[CodeType]:
    """Yield a function's code and that of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_of(constant)


def is_plain(value: object) -> bool:
    """Return whether a value is a number or a text, or a tuple of them, none of which can change."""
    if isinstance(value, tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)
