"""A run imports only what it uses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from mint_train.cli.main import run_command_line
assert run_command_line() == 0
print("imported:", *sorted({"datasets", "matplotlib", "pandas"} & sys.modules.keys()))
"""


@pytest.mark.parametrize("options", [(), ("--set", "reference=initial", "--eval-fraction", "0.25")])
def test_a_run_imports_neither_pandas_nor_datasets(options: tuple[str, ...], tmp_path: Path) -> None:
    arguments = ["--loss", "dpo", "--steps", "1", "--backend", "local", "--output", str(tmp_path), *options]
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[-1] == "imported:"
