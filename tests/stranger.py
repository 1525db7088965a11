"""A plugin that this repository does not know: scaffolded, built as a wheel, installed by pip elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

NAME = "stranger-loss"


def run(*command: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, its output captured."""
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def install_stranger(folder: Path) -> Path:
    """Scaffold, build and install the plugin below a folder; return the folder that Python must look in."""
    done = run(sys.executable, "-m", "mint_train", "new", NAME, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return install(folder, NAME)


def install(folder: Path, name: str) -> Path:
    """Build and install a folder's distribution of a name; return the folder that Python must look in."""
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    steps = [
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", f"./{name}"],
        [*pip, "install", "--no-deps", "--no-index", "--find-links", "dist", "--target", "site", name],
    ]
    for step in steps:
        done = run(*step, folder=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def mint_train(
    installed: Path, folder: Path, *arguments: object, python: str = sys.executable, **environment: str
) -> str:
    """Call mint-train in a process that finds the installed plugin; return its output."""
    command = [python, "-m", "mint_train", *arguments]
    done = run(*command, folder=folder, PYTHONPATH=str(installed), **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
