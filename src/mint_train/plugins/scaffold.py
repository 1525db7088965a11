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
from mint_train.plugins.installed import loss_entry_points, origin

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
PREFIX = "mint-train-"
"""What the names of this project's own distributions begin with."""
TAKEN = ("mint", "mint_train", "torch")
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
        name: the name of the loss and of the distribution, such as `my-loss`; that of a distribution in the
            manner of this project's, `mint-train-my-loss`, has the loss `my-loss`.
        folder: the folder to create; by default, `name` in the current folder.

    Returns:
        The folder that was created.

    Raises:
        OptionError: the name is malformed or taken, or the folder exists or cannot be made.
    """
    loss = loss_of(name)
    function, module = python_name(loss), python_name(name)
    if taken := loss_entry_points().get(loss):
        raise OptionError(f'a loss "{loss}" is installed already, by {origin(taken[0])}; choose another name')
    folder = folder or Path(name)
    if folder.exists():
        raise OptionError(f"{folder} exists already; name another one with --folder")
    values = {
        "distribution": name,
        "module": module,
        "name": loss,
        "function": function,
        "class_name": "".join(word.capitalize() for word in loss.split("-")),
        "version": version("mint-train"),
    }
    try:
        for path, template in TEMPLATES.items():
            target = folder / path.format(module=module)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(fill(template, values), encoding="utf-8")
    except OSError as error:
        raise OptionError(f"{folder} cannot be written: {error.strerror or error}") from error
    return folder


def loss_of(distribution: str) -> str:
    """Return the name of the loss that a new distribution has."""
    return distribution.removeprefix(PREFIX) or distribution


def python_name(name: str) -> str:
    """Return the name of a module or a function for a name on the command line.

    Raises:
        OptionError: the name is malformed, or Python or this project has it for something else.
    """
    if not NAME.fullmatch(name):
        raise OptionError(
            f'"{name}" is not a name for a loss: write lower-case words joined by -, such as my-loss'
        )
    written = name.replace("-", "_")
    if keyword.iskeyword(written) or written in sys.stdlib_module_names or written in TAKEN:
        raise OptionError(f'"{name}" is the name of something else in Python; choose another')
    return written


def fill(template: str | None, values: dict[str, str]) -> str:
    """Return a template with its values filled in; without a template, an empty text."""
    if template is None:
        return ""
    text = files("mint_train.plugins").joinpath("templates", template).read_text(encoding="utf-8")
    return Template(text).substitute(values)
