"""A run imports only what it uses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

RUNS = {
    "plain": [],
    "with a reference and held-out rows": ["--set", "reference=initial", "--eval-fraction", "0.25"],
}
PROGRAM = """
import json, sys
from mint_train.cli.main import run_command_line
for number, options in enumerate(json.loads(sys.argv[1])):
    sys.argv[1:] = ["--loss", "dpo", "--steps", "1", "--backend", "local", "--output", str(number), *options]
    assert run_command_line() == 0
    print("imported:", *sorted({"datasets", "matplotlib", "pandas"} & sys.modules.keys()))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process has imported after each run: it takes seconds to start."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(list(RUNS.values()))],
        cwd=tmp_path_factory.mktemp("start-up"), capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line for line in ran.stdout.splitlines() if line.startswith("imported:")]
    return dict(zip(RUNS, lines, strict=True))


@pytest.mark.xdist_group("start-up")  # in one process, so that the fixture is made once
@pytest.mark.parametrize("run", RUNS)
def test_a_run_imports_neither_pandas_nor_datasets(imported: dict[str, str], run: str) -> None:
    assert imported[run] == "imported:"
