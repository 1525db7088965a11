"""The walls between the rooms, read from the sources."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from mint_train.plugins.installed import loss_entry_points

ROOT = Path(__file__).parents[1]
CORE = ROOT / "src" / "mint_train"
PLUGINS = ROOT / "plugins"
FOREIGN_SDK = {"mint", "tinker"}
KINDS_OF_PLUGINS = ("losses", "observers", "judges", "row_writers")
MOST_LINES = 350
MOST_FUNCTION_LINES = 45
MOST_PARAMETERS = 6


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def module_name(path: Path) -> str:
    """The dotted name of a file of core."""
    parts = path.relative_to(CORE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def walk(node: ast.AST, *, for_types: bool) -> Iterator[ast.AST]:
    """All nodes; where `for_types` is false, without what only a type checker reads."""
    yield node
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child) and not for_types:
            for other in child.orelse:  # type: ignore[attr-defined]
                yield from walk(other, for_types=for_types)
        else:
            yield from walk(child, for_types=for_types)


def imports(path: Path, *, for_types: bool = True) -> set[str]:
    """The modules that a file imports anywhere, its functions included."""
    found: set[str] = set()
    for node in walk(tree(path), for_types=for_types):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def docstrings(path: Path) -> set[int]:
    """The ids of the constants that are documentation: statements that are a string."""
    return {
        id(node.value)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def literals(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a file's logic with their lines."""
    documentation = docstrings(path)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.lineno, node.value


def core_imports(path: Path, *, for_types: bool = False) -> set[str]:
    """The modules of core that a file imports."""
    return {name for name in imports(path, for_types=for_types) if name in CORE_MODULES}


CORE_MODULES = {module_name(path) for path in sources(CORE)}


def test_the_test_sees_the_sources() -> None:
    assert {
        "mint_train.training.runner",
        "mint_train.backends.mint.client",
        "mint_train.rows.readers",
    } <= CORE_MODULES
    assert "mint_train.backends.base" in core_imports(CORE / "training" / "runner.py")
    assert len(list(PLUGINS.glob("*/pyproject.toml"))) >= 1


def test_core_imports_no_plugin() -> None:
    for path in sources(CORE):
        assert not {name for name in packages(path) if name.startswith("mint_train_")}, path


def test_core_names_no_plugin_module() -> None:
    """Nor does it import one by its name in a text."""
    modules = {path.name for path in PLUGINS.glob("*/src/*") if path.is_dir()}
    assert "mint_train_dpo" in modules
    for path in sources(CORE):
        named = [(line, text) for line, text in literals(path) if any(module in text for module in modules)]
        assert not named, f"{path}: {named}"


def test_core_does_not_depend_on_a_plugin_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [name for name in project["dependencies"] if name.startswith("mint-train")]
    assert "mint_train.losses" not in project.get("entry-points", {})


def test_core_knows_no_loss_and_no_preference() -> None:
    """No decision hangs on a loss's name, or on a field or metric of preferences."""
    words = set(loss_entry_points()) | {"chosen", "rejected", "pair_accuracy", "mean_margin"}
    assert "dpo" in words
    for path in sources(CORE):
        named = [(line, text) for line, text in literals(path) if text in words]
        assert not named, f"{path.relative_to(ROOT)} knows {named}"


def test_core_names_nothing_after_a_preference() -> None:
    words = re.compile(r"(^|_)(rejected|dpo|preference|pairs?)(_|$)")
    of_a_command = {"pairs"}  # the function is called as the command is
    for path in sources(CORE):
        for node in ast.walk(tree(path)):
            name = getattr(node, "name", None) or getattr(node, "arg", None) or getattr(node, "attr", None)
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.arg | ast.Attribute):
                if path.parent.name == "api" and name in of_a_command:
                    continue
                assert not words.search(str(name).lower()), f"{path.relative_to(ROOT)}:{node.lineno}: {name}"


def test_rooms_are_small() -> None:
    """A module is read in one sitting and a function on one screen."""
    for path in sources(CORE) + [path for path in sources(PLUGINS) if "src" in path.parts]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, path
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                where = f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
                assert (node.end_lineno or 0) - node.lineno < MOST_FUNCTION_LINES, where
                names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                own = [name for name in names if name not in ("self", "cls")]
                # a kernel takes its tensors one by one
                assert len(own) <= MOST_PARAMETERS or "local" in path.parts, where


def test_core_has_few_modules_beside_its_packages() -> None:
    modules = {path.name for path in CORE.glob("*.py")} - {"__init__.py"}
    assert len(modules) <= 6, modules


def test_only_one_module_imports_the_sdk() -> None:
    importing = {module_name(path) for path in sources(CORE) if packages(path) & FOREIGN_SDK}
    assert importing == {"mint_train.sdk"}
    for path in sources(PLUGINS):
        assert not packages(path) & FOREIGN_SDK, path


def test_a_plugin_imports_one_module_of_core() -> None:
    for path in sources(PLUGINS):
        if "tests" in path.parts or path.name == "conftest.py":
            continue
        named = {name for name in imports(path) if name.split(".")[0] == "mint_train"}
        others = {name for name in named if name != "mint_train.plugin" and name in CORE_MODULES}
        assert not others, f"{path}: {others}; import it from mint_train.plugin"
        assert not packages(path) & {"click", "rich", "httpx"}, path


def test_each_plugin_is_a_distribution_that_names_what_it_imports() -> None:
    for folder in sorted(path for path in PLUGINS.iterdir() if (path / "src").is_dir()):
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        assert project["name"] == folder.name
        needed = {re.split(r"[<>=\[ ]", requirement)[0] for requirement in project["dependencies"]}
        assert set(project["entry-points"]) <= {f"mint_train.{kind}" for kind in KINDS_OF_PLUGINS}
        assert all(project["entry-points"].values())
        for path in sources(folder / "src"):
            used = {name.replace("_", "-") for name in packages(path) if name.startswith("mint_train")}
            assert used - {project["name"]} <= needed, f"{path} imports more than {folder.name} depends on"


def test_all_distributions_have_one_version_and_ask_for_it() -> None:
    core = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for path in PLUGINS.glob("*/pyproject.toml"):
        project = tomllib.loads(path.read_text())["project"]
        assert project["version"] == core["version"], path
        assert project["classifiers"] == core["classifiers"], path
        asked = [name for name in project["dependencies"] if name.startswith("mint-train")]
        assert f"mint-train>={core['version']}" in asked, path
        assert all(name.endswith(f">={core['version']}") for name in asked), path


def test_only_the_program_imports_the_command_line() -> None:
    for path in sources(CORE):
        if path.name != "__main__.py":
            assert "mint_train.cli.main" not in imports(path), path


def test_all_output_passes_the_layer_that_makes_it_printable() -> None:
    """What rows, plugins and servers say may hold codes that control a terminal."""
    layer = {CORE / "observers" / name for name in ("terminal.py", "screen.py")}
    for path in sources(CORE):
        if path not in layer:
            assert "rich.console.Console" not in imports(path), path
            for node in ast.walk(tree(path)):
                name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                assert name not in ("print", "click.echo", "click.secho"), f"{path}:{node.lineno}"


def test_no_module_reaches_into_the_private_names_of_another() -> None:
    for path in sources(CORE) + sources(PLUGINS):
        for name in imports(path):
            if name.startswith("mint_train"):
                parts = name.split(".")
                assert not any(part.startswith("_") and part != "__future__" for part in parts), (
                    f"{path}: {name}"
                )
