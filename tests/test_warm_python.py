"""The Python that tests start quickly behaves as the one that it stands for."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SHOWN = """
import os, resource, sys
print(__name__, sys.argv, os.getcwd(), os.environ["OF_A_TEST"], sys.stdin.read(), sys.stdout.isatty())
print(sys.path[:2], resource.getrlimit(resource.RLIMIT_FSIZE), sys.stdout.line_buffering, sorted(os.environ))
print("to stderr", sys.dont_write_bytecode, sys.stdout.write_through, file=sys.stderr)
sys.exit(3)
"""


@pytest.mark.parametrize(("kept_uncompiled", "options"), [("", []), ("1", ["-u"])])
def test_a_process_is_as_python_itself_starts_it(
    warm_python: str, tmp_path: Path, kept_uncompiled: str, options: list[str]
) -> None:
    variables = {"OF_A_TEST": "Danube", "PYTHONPATH": "/there", "PYTHONDONTWRITEBYTECODE": kept_uncompiled}
    variables["PYTHONUNBUFFERED"] = ""

    def ended(python: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [python, *options, "-c", SHOWN, "one", "two words"], cwd=tmp_path, input="typed",
            capture_output=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
            env=os.environ | variables, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.replace(f"['{tmp_path}'", "[''"), done.stderr

    real = ended(sys.executable)
    assert real[0] == 3
    assert "Danube typed False" in real[1]
    assert "(1000, 1000)" in real[1]
    assert ended(warm_python) == real


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_the_process_and_its_end_is_seen(warm_python: str, number: signal.Signals) -> None:
    code = "import time; print(flush=True); time.sleep(600)"
    with subprocess.Popen(
        [warm_python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, err = process.communicate()  # until no process holds the streams
    assert process.returncode == -number
    assert (b"KeyboardInterrupt" in err) == (number == signal.SIGINT)


def test_a_module_runs_as_the_program(warm_python: str) -> None:
    out = subprocess.check_output([warm_python, "-m", "mint_train", "--version"], text=True)
    assert out == subprocess.check_output([sys.executable, "-m", "mint_train", "--version"], text=True)
