"""The virtual environments of the servers: each installed once, and again where its pins have changed.

Run as a program, this file installs all of them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent
CACHE = FOLDER.parents[1] / ".cache"
LOG_TAIL_LINES = 40
SKIP_VARIABLE = "MINT_TRAIN_SKIP_SERVERS"
SDKS = ("0.25.0", "0.38.0")
"""The versions of the SDK that tests use beside the installed one; the second is newer than any that fits."""
# pydantic refuses typing.TypedDict before 3.12; a .pth, since a system's own sitecustomize would hide ours
TYPED_DICT_FIX = "import typing, typing_extensions; typing.TypedDict = typing_extensions.TypedDict\n"


def servers_are_skipped() -> bool:
    """Return whether no server is installed and started: only where it is asked for, and never in CI."""
    return os.environ.get(SKIP_VARIABLE) == "1" and os.environ.get("CI") != "true"


class ServerError(Exception):
    """A server could not be installed or started."""


@dataclass(frozen=True)
class Environment:
    """What a server is installed from."""

    name: str
    pins: Path
    """A version of each package."""
    requirements: tuple[str, ...] = ()
    """What is installed within the pins; without any, exactly the pins, whatever they say they need."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Further files of its site-packages."""
    python: str = sys.executable

    def installed(self) -> Path:
        """Return the folder of the virtual environment, made anew where anything of it has changed.

        Raises:
            ServerError: The install failed; the message ends with what uv said.
        """
        CACHE.mkdir(exist_ok=True)
        folder = CACHE / self.name
        with (CACHE / f"{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system even if this process is killed
            key, stamp = self.key(folder), folder / "installed.sha256"
            if not stamp.is_file() or stamp.read_text(encoding="utf-8") != key:
                shutil.rmtree(folder, ignore_errors=True)
                try:
                    self.install(folder)
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
                stamp.write_text(key, encoding="utf-8")  # last: what has no stamp is half made
        return folder

    def key(self, folder: Path) -> str:
        """Return a hash of everything that the environment is made from, its place included."""
        parts = [self.pins.read_text(encoding="utf-8"), *self.requirements, str(folder), self.python]
        parts += [sys.version, *(text for item in sorted(self.files.items()) for text in item)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def install(self, folder: Path) -> None:
        """Make the virtual environment, and install the server into it."""
        wanted = (
            ["-c", self.pins, *self.requirements] if self.requirements else ["--no-deps", "-r", self.pins]
        )
        run([self.python, "-m", "venv", "--without-pip", folder])
        uv_install("--python", folder / "bin" / "python", *wanted)
        (site_packages,) = folder.glob("lib/python*/site-packages")
        for name, text in self.files.items():
            (site_packages / name).parent.mkdir(exist_ok=True)
            (site_packages / name).write_text(text, encoding="utf-8")


def run(command: list[str | Path]) -> None:
    """Run a part of an installation.

    Raises:
        ServerError: It failed; the message ends with what it said.
    """
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        tail = done.stdout.splitlines()[-LOG_TAIL_LINES:]
        raise ServerError("\n".join([f"{command[0]} failed; it said:", *tail]))


def uv_install(*wanted: str | Path) -> None:
    """Install what is wanted, as `uv pip install` takes it.

    Raises:
        ServerError: It failed; the message ends with what uv said.
    """
    run([sys.executable, FOLDER.parent / "uv_install.py", *wanted])


def newer_python() -> str | None:
    """Return a Python 3.12 or newer: this one, one on the path, or one of pyenv's."""
    if sys.version_info >= (3, 12):
        return sys.executable
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in (12, 13):
        found = [str(path) for path in sorted(versions.glob(f"3.{minor}.*/bin/python"))]
        on_path = shutil.which(f"python3.{minor}")
        for candidate in [on_path, *found] if on_path else found:
            if not subprocess.run(
                [candidate, "-c", "import venv, ensurepip"], capture_output=True
            ).returncode:
                return candidate
    return None


SKYRL = Environment(
    "skyrl-venv",
    FOLDER / "skyrl-0.3.0.txt",
    ("skyrl[tinker,jax]", "torch", "tinker", "uv", "alembic"),
    {"typed_dict_fix.pth": TYPED_DICT_FIX} if sys.version_info < (3, 12) else {},
)
TUFT = Environment("tuft-venv", FOLDER / "tuft-0.2.2.txt")
# the JAX backend needs torch and peft for one file of a saved adapter; torch has no CPU build for Python 3.12
STAND_INS = {
    "torch.py": "__version__ = '0'\nclass Tensor: pass\nclass dtype: pass\n",
    "peft.py": (
        "import json\n"
        "class LoraConfig:\n"
        "    def __init__(self, **values): self.values = values\n"
        "    def save_pretrained(self, folder):\n"
        "        with open(f'{folder}/adapter_config.json', 'w') as file:\n"
        "            json.dump(self.values | {'peft_type': 'LORA', 'task_type': 'CAUSAL_LM'}, file)\n"
    ),
}


def newer_skyrl() -> Environment | None:
    """Return the environment of the newer SkyRL, where there is a Python for it."""
    python = newer_python()
    return (
        Environment("skyrl-0.4-venv", FOLDER / "skyrl-0.4.0.txt", (), STAND_INS, python) if python else None
    )


def installed_sdk(version: str) -> Path:
    """Install another version of the SDK into a folder that goes before the tests' own packages."""
    folder = CACHE / f"tinker-{version}"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"tinker-{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            shutil.rmtree(folder, ignore_errors=True)
            uv_install("--no-deps", "--target", folder, f"tinker=={version}", "zstandard==0.25.0")
            (folder / "installed").touch()
    return folder


def install_all() -> None:
    """Install every environment that the tests need."""
    for environment in (SKYRL, newer_skyrl(), TUFT):
        if environment is not None:
            environment.installed()
    for version in SDKS:
        installed_sdk(version)


if __name__ == "__main__" and not servers_are_skipped():
    install_all()
