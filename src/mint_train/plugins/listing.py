"""The list of `mint-train losses`, read from the plugins' sources without importing them."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

from mint_train.plugins.installed import clash, loss_entry_points, origin


@dataclass(frozen=True, slots=True)
class LossListing:
    """One installed loss; `problem` says why it cannot be used, or is None."""

    name: str
    origin: str
    extends: str | None
    description: str
    problem: str | None


def list_losses() -> list[LossListing]:
    """List the installed losses by name, in milliseconds: their own imports (torch) are not run."""
    return [describe(found) for found in loss_entry_points().values()]


def describe(found: list[EntryPoint]) -> LossListing:
    """Read a plugin's description and base from its source, and find what would keep it from loading."""
    entry_point = found[0]
    if problem := clash(found):
        return LossListing(entry_point.name, origin(entry_point), None, "", problem)
    extends, description, problem = None, "", None
    try:
        tree, problem = read_module(entry_point.module)
        node = find_definition(tree, entry_point.attr) if entry_point.attr else tree
        description = (ast.get_docstring(node) or "").partition("\n")[0]
        extends = find_extends(node)
    except (ImportError, OSError, SyntaxError, LookupError) as error:
        problem = f"{type(error).__name__}: {error}"
    return LossListing(entry_point.name, origin(entry_point), extends, description, problem)


@cache
def read_module(module: str) -> tuple[ast.Module, str | None]:
    """Return the syntax tree of a module, which may hold many losses, and its first missing import."""
    path = find_source(module)
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=path.name)
    return tree, missing_import(tree)


def find_source(module: str) -> Path:
    """Find a module's file without importing it or its parents."""
    package, *rest = module.split(".")
    spec = find_spec(package)
    if spec is None:
        raise ImportError(f"No module named {package!r}")
    if not rest:
        if spec.origin is None:
            raise ImportError(f"{package!r} has no source file")
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        base = Path(folder, *rest)
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.exists():
                return candidate
    raise ImportError(f"No module named {module!r}")


def missing_import(tree: ast.Module) -> str | None:
    """Return the error of the first top-level import that is not installed, or None."""
    for node in tree.body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        for name in names:
            package = name.partition(".")[0]
            if not is_installed(package):
                return f"ModuleNotFoundError: No module named {package!r}"
    return None


@cache
def is_installed(package: str) -> bool:
    """Return whether a top-level package can be found."""
    return find_spec(package) is not None


def find_definition(tree: ast.Module, name: str) -> ast.FunctionDef | ast.ClassDef:
    """Return the top-level function or class of a name."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
    raise LookupError(f"no function or class {name!r}")


def find_extends(node: ast.Module | ast.FunctionDef | ast.ClassDef) -> str | None:
    """Return the name in `EXTENDS = ...` or `@loss(extends=...)`, or None."""
    values: list[ast.expr | None] = []
    if isinstance(node, ast.FunctionDef):
        calls = [decorator for decorator in node.decorator_list if isinstance(decorator, ast.Call)]
        values = [keyword.value for call in calls for keyword in call.keywords if keyword.arg == "extends"]
    else:
        for statement in node.body:
            if isinstance(statement, ast.Assign | ast.AnnAssign):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                if any(isinstance(target, ast.Name) and target.id == "EXTENDS" for target in targets):
                    values.append(statement.value)
    constants = [value.value for value in values if isinstance(value, ast.Constant)]
    return str(constants[-1]) if constants else None
