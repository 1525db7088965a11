"""Time of a whole short run, `mint-train --loss dpo`, beside importing the libraries that it needs.

    python benchmarks/start_up.py [--rounds N]

The two commands alternate, each in a fresh process, after a round that warms the disk cache. Wall time needs
a quiet machine; CPU seconds depend less on other programs. The first line is timed on a terminal, where it
says what is being loaded.
"""

from __future__ import annotations

import argparse
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import time

IMPORTS = [sys.executable, "-c", "import torch, transformers, peft"]
BAR, FIRST_LINE_BAR = 1.0, 0.5


def main() -> int:
    """Print both medians, their ratio, and the time to the first line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        run = [sys.executable, "-m", "mint_train", "--loss", "dpo", "--backend", "local"]
        run += ["--output", f"{folder}/run", "--overwrite"]
        commands = {"the run": run, "the imports": IMPORTS}
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "MINT_TRAIN_CACHE": f"{folder}/cache"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(rounds + 1):
            for name, command in commands.items():
                figures[name].append(measure(command, environment))
        first_line = statistics.median(seconds_to_first_line(run, environment) for _ in range(rounds))
    wall, cpu = ({name: median(values[1:], at) for name, values in figures.items()} for at in (0, 1))
    for name in commands:
        print(f"{name:12} {wall[name]:6.2f} s, {cpu[name]:6.2f} CPU s")
    ratio = wall["the run"] / wall["the imports"]
    print(f"ratio of wall times {ratio:.2f} (at most {BAR})")
    print(f"ratio of CPU seconds {cpu['the run'] / cpu['the imports']:.2f}")
    print(f"first line after {first_line:.2f} s (at most {FIRST_LINE_BAR})")
    return int(ratio > BAR or first_line > FIRST_LINE_BAR)


def median(values: list[tuple[float, float]], at: int) -> float:
    """Return the median of one of the figures."""
    return statistics.median(value[at] for value in values)


def measure(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a command to its end; return wall time and CPU seconds."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed with wait status {status}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime


def seconds_to_first_line(command: list[str], environment: dict[str, str]) -> float:
    """Return the time until a command prints to a terminal, and stop it then."""
    ours, theirs = pty.openpty()
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=theirs, stderr=theirs)
    os.read(ours, 1)
    seconds = time.perf_counter() - began
    process.kill()
    process.wait()
    os.close(ours)
    os.close(theirs)
    return seconds


if __name__ == "__main__":
    raise SystemExit(main())
