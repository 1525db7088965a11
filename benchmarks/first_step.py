"""How long a run with a reference takes to its first step, and how long it would wait for all logprobs first.

    python benchmarks/first_step.py [--rows 1000]

Two embedded runs of one epoch on the starter model: one computes all reference logprobs before its first
step, the other one computes them as its steps need them. Times are those of the clock and CPU seconds of the
process, which other programs disturb less. They count from the moment when the model and the rows are ready,
so what starting takes anyway is left out. The figures of both runs must be equal to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mint_train
from mint_train.training import references


class Watch:
    """Notes when the reference begins, and when the first and the last step are done."""

    def __init__(self) -> None:
        self.began = self.first = self.last = (0.0, 0.0)

    @mint_train.hookimpl
    def notice(self, text: str, warning: bool) -> None:  # noqa: ARG002 - the hook's own
        """Note the line that comes before the first reference logprob."""
        if text.startswith("Reference logprobs:"):
            self.began = clocks()

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


def train(folder: Path, name: str) -> tuple[Watch, list[dict[str, Any]]]:
    """Train an epoch; return when it reached what, and its figures."""
    os.environ["MINT_TRAIN_CACHE"] = str(folder / f"{name}-cache")  # or the next run would find all there
    watch = Watch()
    mint_train.train(
        "dpo", options={"reference": "initial"}, data=folder / "pairs.jsonl", lr=1e-3, backend="local",
        output=folder / name, observers=[watch], progress="quiet",
    )  # fmt: skip
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return watch, [json.loads(line)["metrics"] for line in lines]


def main() -> None:
    """Print the times of both runs, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pairs(folder / "pairs.jsonl", given.rows)
        train(folder, "warm")
        with patch.object(references, "reason_to_compute_first", lambda *_: "to compare"):
            before, expected = train(folder, "all-first")
        after, found = train(folder, "as-needed")
    differing = [
        step for step, (one, other) in enumerate(zip(found, expected, strict=True), 1) if one != other
    ]
    assert not differing, f"the figures differ after steps {differing}"
    for clock, unit in enumerate(("s", "CPU s")):
        step, epoch = (
            [getattr(watch, at)[clock] - watch.began[clock] for watch in (before, after)]
            for at in ("first", "last")
        )
        waits = f"{step[0]:.2f} {unit} with all of the reference first, {step[1]:.2f} {unit} as needed"
        print(f"{given.rows:,} rows, to the first step: {waits}, ratio {step[1] / step[0]:.3f}")
        print(f"  to the end of the epoch: {epoch[0]:.1f} and {epoch[1]:.1f} {unit}")
    print("figures: equal to the bit")


if __name__ == "__main__":
    main()
