"""Runs of `mint-train` that are killed and resumed, each in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

from mint_train.groups.reference_file import is_whole

# children are forked from a server that has imported everything: no kill is wasted on imports
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["mint_train.training.training", "mint_train.backends.local.load"])
KILLED = -9
MOST_TRIES = 30
POLL_SECONDS = 0.002
LONGEST_PAUSE = 0.05
"""Seconds from a step to the kill: enough for the kill to fall into any part of the next step."""


@dataclass
class Ended:
    """How a process ended, and what it wrote."""

    status: int
    output: str


@dataclass
class Kill:
    """When to kill a run: once it has recorded some steps, and a moment later.

    It follows the run's own progress, so that a slow machine is killed as far into the run as a fast one.
    """

    steps: int
    seconds_later: float

    @classmethod
    def drawn(cls, dice: random.Random, first: int, last: int) -> Kill:
        """Draw a kill after `first` steps or more and before `last`."""
        return cls(dice.randint(first, max(first, last - 2)), dice.uniform(0, LONGEST_PAUSE))


def call_cli(arguments: list[str], log: str, variables: dict[str, str]) -> None:
    """Be `mint-train`, in a new process."""
    with open(log, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(variables)
    sys.argv = ["mint-train", *arguments]
    from mint_train.cli.main import main

    main()


def recorded_steps(folder: Path) -> int:
    """Return how many steps a run has recorded; a folder that is not there has none."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def run(folder: Path, *arguments: str, kill: Kill | None = None, **variables: str) -> Ended:
    """Run `mint-train` to its end, or kill it."""
    log = folder.with_name(folder.name + ".log")
    process = PROCESSES.Process(target=call_cli, args=(list(arguments), str(log), variables))
    process.start()
    if kill is not None:
        while process.is_alive() and recorded_steps(folder) < kill.steps:
            process.join(POLL_SECONDS)
        process.join(kill.seconds_later)
        process.kill()
    process.join()
    assert process.exitcode is not None
    return Ended(process.exitcode, log.read_text(errors="replace") if log.exists() else "")


def run_killed(
    folder: Path, arguments: list[str], steps: int, dice: random.Random, **variables: str
) -> tuple[int, int]:
    """Start a run, kill it somewhere, and resume it, perhaps to kill it again, until it is done.

    Args:
        folder: the run's folder; each time that nothing can be resumed, the run is started anew.
        arguments: what an unbroken run is started with, without --output.
        steps: how many steps an unbroken run takes.
        dice: decide where to kill.
        variables: of the environment.

    Returns:
        How often it was killed, and how often started anew.
    """
    start = [*arguments, "--output", str(folder), "--overwrite"]
    ended = run(folder, *start, kill=Kill.drawn(dice, 0, steps), **variables)
    kills, restarts = int(ended.status == KILLED), 0
    for _ in range(MOST_TRIES):
        check_files(folder)
        if ended.status == 0:
            return kills, restarts
        again = Kill.drawn(dice, recorded_steps(folder), steps) if dice.random() < 0.3 else None
        if ended.status == KILLED:
            ended = run(folder, "resume", str(folder), kill=again, **variables)
        else:
            # it says in one line that there is nothing to resume
            assert ended.status == 2, ended.output
            assert "no checkpoint" in ended.output or "holds no run" in ended.output, ended.output
            restarts += 1
            ended = run(folder, *start, kill=again, **variables)
        kills += ended.status == KILLED
    raise AssertionError(f"{folder} is not done after {MOST_TRIES} tries: {ended.output}")


def check_files(folder: Path) -> None:
    """Read every file of a run: none may be torn, whenever the run was killed."""
    for path in folder.rglob("*"):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue  # what is written beside does not count yet
        if path.suffix == ".jsonl":
            text = path.read_text()
            assert text == "" or text.endswith("\n"), path
            lines = [json.loads(line) for line in text.splitlines()]
            if path.parent != folder or path.name == "tokens.jsonl":
                continue  # an evaluation's rows have no step; a repeated step counts its tokens again
            steps = [line["step"] for line in lines]
            assert steps == sorted(set(steps)), path
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".arrow":
            assert is_whole(path, print), path
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                assert list(file.keys()), path


def figures(folder: Path) -> list[dict[str, Any]]:
    """Return the numbers of each line of `metrics.jsonl` without the time that the step took."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {"step": line["step"], "tokens": line["tokens"], "learning_rate": line["learning_rate"]}
        | line["metrics"]
        for line in lines
    ]


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
