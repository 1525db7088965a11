"""How long a run with a reference takes to its first step, and how long it would wait for all logprobs first.

    python benchmarks/first_step.py [--rows 1000] [--rounds 3] [--service] [--again] [--steps N]

Runs of one epoch on the starter model, by turns: one computes all reference logprobs before its first step,
the next one computes them as its steps need them. Times are medians over the rounds, those of the clock and,
of an embedded run, CPU seconds of the process, which other programs disturb less. They count from the moment
when the model and the rows are ready, so what starting takes anyway is left out. The figures of embedded runs
must be equal to the bit.

With `--again` further runs on the same rows come, with and without a reference and by length: how long they
take from looking for the tokenised rows, which they find, to the beginning of their first step, and the most
memory of the process.

With `--service` they run on a SkyRL server, which this script starts; there a second adapter computes what
later steps need, and the time to open it counts. Figures must be equal within 1e-4.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import mint_train
from mint_train.backends.local.starter_model import save_starter_model
from mint_train.groups.build import build_dataset
from mint_train.training import preparing, references

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "servers"))
from server import running_server

TOLERANCE = 1e-4
"""Largest difference of figures on a service."""
AGAIN: dict[str, dict[str, Any]] = {
    "": {},
    " with reference=initial": {"options": {"reference": "initial"}},
    " with --group-by-length": {"group_by_length": True},
}
"""Settings of further runs on the same rows, by what they are called."""


class Watch:
    """Notes when the reference begins, when the first step begins, and when it and the last one are done."""

    def __init__(self) -> None:
        self.began = self.begins = self.first = self.last = (0.0, 0.0)

    @mint_train.hookimpl
    def run_started(self, run: Any) -> None:  # noqa: ARG002 - the hook's own
        """Note the moment before the first step."""
        self.begins = clocks()

    @mint_train.hookimpl
    def step_finished(self, step: Any) -> None:
        """Note the first step, and the last one so far."""
        self.last = clocks()
        if step.step == 1:
            self.first = self.last


def clocks() -> tuple[float, float]:
    """Return the time, and the CPU time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def write_pairs(path: Path, rows: int) -> None:
    """Write distinct pairs."""
    with path.open("w", encoding="utf-8") as file:
        for n in range(rows):
            row = {"prompt": f"Say {n}.", "chosen": f"{n} it is", "rejected": f"not {n}, no"}
            file.write(json.dumps(row) + "\n")


def train(
    folder: Path, name: str, settings: dict[str, Any], *, first: bool
) -> tuple[Watch, list[dict[str, Any]]]:
    """Train; return when the run reached what, and its figures.

    Args:
        folder: holds the rows.
        name: of the run.
        settings: those of the backend.
        first: whether all of the reference comes before the first step.
    """
    os.environ["MINT_TRAIN_CACHE"] = str(folder / f"{name}-cache")  # or the next run would find all there
    watch, reason = Watch(), references.reason_to_compute_first

    def begin(*arguments: Any) -> str:
        watch.began = clocks()
        return "to compare" if first else reason(*arguments)

    with patch.object(references, "reason_to_compute_first", begin):
        mint_train.train(
            "dpo", options={"reference": "initial"}, data=folder / "pairs.jsonl", output=folder / name,
            observers=[watch], progress="quiet", **settings,
        )  # fmt: skip
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return watch, [json.loads(line)["metrics"] for line in lines]


@contextmanager
def backend(folder: Path, service: bool) -> Iterator[dict[str, Any]]:
    """Yield the settings of the backend, with a server that runs where one is asked for."""
    if not service:
        yield {"backend": "local", "lr": 1e-3}
        return
    for name in ("model", "server"):
        (folder / name).mkdir()
    save_starter_model(folder / "model")
    with running_server(folder / "model", folder / "server") as server:
        yield {
            "backend": "mint", "lr": 1e-4, "base_url": server.base_url, "model": server.model,
            "api_key": "tml-x",
        }  # fmt: skip


def main() -> None:
    """Print the times of both runs, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--service", action="store_true", help="on a SkyRL server")
    parser.add_argument("--again", action="store_true", help="a second run on the same rows")
    parser.add_argument("--steps", type=int, help="by default one epoch")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    before, after = list[Watch](), list[Watch]()
    with tempfile.TemporaryDirectory() as name, backend(Path(name), given.service) as settings:
        folder = Path(name)
        write_pairs(folder / "pairs.jsonl", given.rows)
        if given.again:
            start_again(folder, given.rows, given.rounds)
            return
        settings["steps"] = given.steps
        train(folder, "warm", settings, first=False)
        for number in range(given.rounds):
            watch, expected = train(folder, f"all-first-{number}", settings, first=True)
            before.append(watch)
            watch, found = train(folder, f"as-needed-{number}", settings, first=False)
            after.append(watch)
            assert_same(found, expected, TOLERANCE if given.service else 0.0)
    for clock, unit in enumerate(("s",) if given.service else ("s", "CPU s")):
        print(f"{given.rows:,} rows, {unit} with all of the reference first, and as needed:")
        for moment, what in (
            ("begins", "beginning of the first"),
            ("first", "end of the first"),
            ("last", "end of the last"),
        ):
            one, other = (median_until(moment, watches, clock) for watches in (before, after))
            print(f"  to the {what} step: {one:.2f} and {other:.2f}, ratio {other / one:.3f}")
    print(f"figures: equal {'within 1e-4' if given.service else 'to the bit'}")


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float) -> None:
    """Compare the figures of two runs, step by step."""
    differing = [
        step
        for step, (one, other) in enumerate(zip(found, expected, strict=True), 1)
        if any(abs(one[figure] - other[figure]) > tolerance for figure in other)
    ]
    assert not differing, f"the figures differ after steps {differing}"


def start_again(folder: Path, rows: int, rounds: int) -> None:
    """Print how soon further runs on the same rows begin their first step."""
    os.environ["MINT_TRAIN_CACHE"] = str(folder / "cache")
    wall, cpu = time_to_begin(folder / "first", {})
    print(f"{rows:,} rows, from looking for the tokenised rows to the beginning of the first step:")
    print(f"  first run: {wall:.2f} s, {cpu:.2f} CPU s", flush=True)
    for number, (name, settings) in enumerate(AGAIN.items()):
        times = [time_to_begin(folder / f"again-{number}-{each}", settings) for each in range(rounds)]
        wall, cpu = (median(part) for part in zip(*times, strict=True))
        print(f"  later ones{name}: {wall:.2f} s, {cpu:.2f} CPU s", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  peak of the process, torch and the starter model included: {peak:.2f} GiB")


def time_to_begin(run: Path, settings: dict[str, Any]) -> tuple[float, float]:
    """Return the seconds and CPU seconds from looking for the tokenised rows to the first step."""
    watch = Watch()

    def noted(*arguments: Any) -> Any:
        watch.began = clocks()
        return build_dataset(*arguments)

    with patch.object(preparing, "build_dataset", noted):
        mint_train.train(
            "dpo", data=run.parent / "pairs.jsonl", output=run, steps=1, backend="local", observers=[watch],
            progress="quiet", **settings,
        )  # fmt: skip
    return watch.begins[0] - watch.began[0], watch.begins[1] - watch.began[1]


def median_until(moment: str, watches: list[Watch], clock: int) -> float:
    """Return the median of the seconds until a moment, over the rounds."""
    return float(median(getattr(watch, moment)[clock] - watch.began[clock] for watch in watches))


if __name__ == "__main__":
    main()
