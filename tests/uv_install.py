"""Install packages by uv, which takes a tenth of pip's time, from where pip is told to find them.

Run as a program, this file takes what follows `uv pip install`.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping

VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}
"""The variable that tells uv, by pip's name of the setting: uv reads no settings of pip's."""


def uv_variables(settings: Iterable[str]) -> dict[str, str]:
    """Return pip's settings as uv's variables.

    Args:
        settings: The lines of `pip config list`, such as `global.timeout='60'`.
    """
    values = {}
    # as pip does: a variable of the environment goes before a section of the file, which goes before "global"
    for section in ("global", "install", ":env:"):
        for line in settings:
            name, _, value = line.partition("=")
            if name.startswith(f"{section}."):
                values[name.removeprefix(f"{section}.")] = str(ast.literal_eval(value))
    variables = {VARIABLES[name]: value for name, value in values.items() if name in VARIABLES}
    if "UV_FIND_LINKS" in variables:
        variables["UV_FIND_LINKS"] = ",".join(variables["UV_FIND_LINKS"].split())
    return variables


def environment() -> Mapping[str, str]:
    """Return the environment for uv; what it already says about uv goes before pip's settings."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    # like pip, take the best version that any index has, and no Python but those that are there
    habits = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
    into = {"UV_PYTHON": sys.executable}  # and not whichever virtual environment the shell has activated
    return habits | uv_variables(listed.stdout.splitlines()) | dict(os.environ) | into


if __name__ == "__main__":
    uv = [sys.executable, "-m", "uv", "pip", "install", *sys.argv[1:]]
    sys.exit(subprocess.run(uv, env=environment()).returncode)
