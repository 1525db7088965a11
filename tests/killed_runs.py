"""Runs of `mint-train` that are killed and resumed, each in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from safetensors import safe_open
from safetensors.torch import load_file

# children are forked from a server that has imported everything: no kill is wasted on imports
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["mint_train.training.training", "mint_train.backends.local.load"])
KILLED = -9
MOST_TRIES = 30


@dataclass
class Ended:
    """How a process ended, when, and what it wrote."""

    status: int
    seconds: float
    output: str


def call_cli(arguments: list[str], log: str, variables: dict[str, str]) -> None:
    """Be `mint-train`, in a new process."""
    with open(log, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(variables)
    sys.argv = ["mint-train", *arguments]
    from mint_train.cli.main import main

    main()


def run(folder: Path, *arguments: str, kill_after: float | None = None, **variables: str) -> Ended:
    """Run `mint-train` to its end, or kill it after some seconds."""
    log = folder.with_name(folder.name + ".log")
    process = PROCESSES.Process(target=call_cli, args=(list(arguments), str(log), variables))
    began = time.monotonic()
    process.start()
    process.join(kill_after)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    output = log.read_text(errors="replace") if log.exists() else ""
    return Ended(process.exitcode, time.monotonic() - began, output)


def run_killed(
    folder: Path, arguments: list[str], whole_seconds: float, moments: random.Random, **variables: str
) -> tuple[int, int]:
    """Begin a run, kill it at a random moment, and resume it, perhaps to kill it again, until it is done.

    Args:
        folder: where the run is to be; each time that nothing can be resumed it is begun anew.
        arguments: what an unbroken run is started with, without --output.
        whole_seconds: how long that takes.
        moments: tells when to kill.
        variables: of the environment.

    Returns:
        How often it was killed, and how often begun anew.
    """
    begin = [*arguments, "--output", str(folder), "--overwrite"]
    ended = run(folder, *begin, kill_after=moments.uniform(0, whole_seconds), **variables)
    kills, begun_anew = int(ended.status == KILLED), 0
    for _ in range(MOST_TRIES):
        check_files(folder)
        if ended.status == 0:
            return kills, begun_anew
        again = moments.uniform(0, whole_seconds) if moments.random() < 0.3 else None
        if ended.status == KILLED:
            ended = run(folder, "resume", str(folder), kill_after=again, **variables)
        else:
            # it says in one line that there is nothing to resume
            assert ended.status == 2, ended.output
            assert "no checkpoint" in ended.output or "holds no run" in ended.output, ended.output
            begun_anew += 1
            ended = run(folder, *begin, kill_after=again, **variables)
        kills += ended.status == KILLED
    raise AssertionError(f"{folder} is not done after {MOST_TRIES} tries: {ended.output}")


def check_files(folder: Path) -> None:
    """Read every file of a run: none may be torn, whenever the run was killed."""
    for path in folder.rglob("*"):
        if ".part" in "".join(path.relative_to(folder).parts):
            continue  # what is written beside does not count yet
        if path.suffix == ".jsonl":
            text = path.read_text()
            assert text == "" or text.endswith("\n"), path
            steps = [json.loads(line)["step"] for line in text.splitlines()]
            assert steps == sorted(set(steps)), path
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".arrow":
            pa.ipc.open_file(path).read_all()
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                assert list(file.keys()), path


def figures(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl` without the time that a step took."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same_to_the_bit(folder: Path, unbroken: Path) -> None:
    """Compare what two embedded runs left: figures, weights, reference logprobs."""
    assert figures(folder) == figures(unbroken)
    name = "adapter/adapter_model.safetensors"
    one, other = load_file(folder / name), load_file(unbroken / name)
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert tensor.numpy().tobytes() == other[key].numpy().tobytes(), f"{name}: {key}"
    assert references(folder) == references(unbroken)


def references(folder: Path) -> dict[str, bytes]:
    """Return the files of a run's reference logprobs."""
    return {path.name: path.read_bytes() for path in (folder / "reference").glob("*.arrow")}
