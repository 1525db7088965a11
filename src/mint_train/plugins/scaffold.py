"""`mint-train new`: a complete plugin distribution to start a loss from."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template

from mint_train.errors import OptionError
from mint_train.plugins.discovery import loss_entry_points, origin

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
TEMPLATES = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    "src/{module}/__init__.py": "loss.py.txt",
    "src/{module}/py.typed": None,
    "tests/test_{module}.py": "test_loss.py.txt",
}


def new_loss(name: str, folder: Path | None = None) -> Path:
    """Write a complete plugin distribution: one loss, its test and its README.

    Args:
        name: the name of the loss and of the distribution, such as `my-loss`.
        folder: the folder to create; by default, `name` in the current folder.

    Returns:
        The folder that was created.

    Raises:
        OptionError: the name is malformed or taken, or the folder exists or cannot be made.
    """
    module = module_name(name)
    folder = folder or Path(name)
    if folder.exists():
        raise OptionError(f"{folder} exists already; name another one with --folder")
    class_name = "".join(word.capitalize() for word in name.split("-"))
    values = {"name": name, "module": module, "class_name": class_name, "version": minor_version()}
    try:
        for path, template in TEMPLATES.items():
            target = folder / path.format(module=module)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(fill(template, values), encoding="utf-8")
    except OSError as error:
        raise OptionError(f"{folder} cannot be written: {error.strerror or error}") from error
    return folder


def module_name(name: str) -> str:
    """Return the Python module of a loss's name.

    Raises:
        OptionError: the name is malformed, a name of Python's own, or that of an installed loss.
    """
    if not NAME.fullmatch(name):
        raise OptionError(
            f'"{name}" is not a name for a loss: write lower-case words joined by -, such as my-loss'
        )
    module = name.replace("-", "_")
    if (
        keyword.iskeyword(module)
        or module in sys.stdlib_module_names
        or module in ("mint", "mint_train", "torch")
    ):
        raise OptionError(f'"{name}" is the name of something else in Python; choose another')
    if taken := loss_entry_points().get(name):
        raise OptionError(f'a loss "{name}" is installed already, by {origin(taken[0])}; choose another name')
    return module


def fill(template: str | None, values: dict[str, str]) -> str:
    """Return a template with its values filled in; without a template, an empty text."""
    if template is None:
        return ""
    text = files("mint_train.plugins").joinpath("templates", template).read_text(encoding="utf-8")
    return Template(text).substitute(values)


def minor_version() -> str:
    """Return the release of mint-train that a new plugin requires, such as 0.1."""
    return ".".join(version("mint-train").split(".")[:2])
