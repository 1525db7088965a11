"""What the checks of `docs/what-it-survives.md` cost: their share of a step, and of preparing data.

Each check is timed inside a real run on the starter model, which has the shortest steps, so that its share is
the largest that it can be; medians over the steps. Of preparing data, everything that only notices what is
broken or has changed is timed: digests, checksums, ranges of tokens, and keys that stand twice.

    python benchmarks/check_cost.py [--rows N] [--steps N]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mint_train
from mint_train.backends.local.starter_model import make_starter_tokenizer
from mint_train.groups.build import build_dataset
from mint_train.groups.examples import find_data, read_examples
from mint_train.losses.weighted_sum import open_loss
from mint_train.plugins.guarding import guarded
from mint_train.settings.model import Settings
from mint_train.training.runner import Runner

IN_A_STEP = [
    ("mint_train.losses.custom_loss", ("check_state", "check_logprobs", "check_gradients")),
    ("mint_train.losses.loss", ("finite_metrics",)),
]
IN_PREPARING = [
    ("mint_train.rows.readers", ("file_digest",)),
    ("mint_train.groups.build", ("check_groups", "write_checksums", "is_whole")),
]
HOOK_CALLS = 4
"""Hooks of a loss that a step calls through the guard: two checks of the batch, its mathematics, a note."""
ROW = {
    "prompt": "Which river flows through Vienna? " * 6,
    "chosen": "The Danube. " * 20,
    "rejected": "None. " * 20,
}


class Timer:
    """Adds up the time that functions take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Time a function."""

        def call(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                self.seconds += time.perf_counter() - began

        return call

    def watch(self, places: list[tuple[str, tuple[str, ...]]]) -> None:
        """Time functions under the names by which modules call them."""
        for module, names in places:
            for name in names:
                found = importlib.import_module(module)
                setattr(found, name, self.around(getattr(found, name)))


def main() -> None:
    """Measure both, and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["MINT_TRAIN_CACHE"] = f"{name}/cache"
        data = Path(name) / "rows.jsonl"
        rows = ({**ROW, "prompt": f"{number} {ROW['prompt']}"} for number in range(arguments.rows))
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"a step: {share_of_steps(data, Path(name) / 'run', arguments.steps)}")
        print(f"preparing {arguments.rows:,} pairs: {share_of_preparing(data)}")


def share_of_steps(data: Path, output: Path, steps: int) -> str:
    """Train, and return the share of the checks."""
    timer, shares, lengths = Timer(), [], []
    timer.watch(IN_A_STEP)
    record = Runner.record

    def recording(self: Runner, submitted: Any) -> None:
        record(self, submitted)
        line = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
        shares.append((timer.seconds + HOOK_CALLS * guard_seconds) / line["seconds"])
        lengths.append(line["seconds"])
        timer.seconds = 0.0

    guard_seconds = seconds_of_a_guard()
    Runner.record = recording  # type: ignore[method-assign]
    try:
        mint_train.train("dpo", data=data, steps=steps, output=output, progress="quiet", max_length=128)
    finally:
        Runner.record = record  # type: ignore[method-assign]
    return (
        f"{100 * statistics.median(shares):.2f} % of {1000 * statistics.median(lengths):.1f} ms "
        f"(medians of {len(shares)} steps)"
    )


def seconds_of_a_guard(calls: int = 20_000) -> float:
    """Return what the guard around a hook adds to a call."""
    plain: Callable[..., Any] = lambda: None  # noqa: E731
    implementation: Any = SimpleNamespace(plugin=None, plugin_name="a", function=plain)
    times = []
    for function in (plain, guarded("flatten", implementation)):
        began = time.perf_counter()
        for _ in range(calls):
            function()
        times.append((time.perf_counter() - began) / calls)
    return times[1] - times[0]


def share_of_preparing(data: Path) -> str:
    """Read, flatten and keep rows, and return the share of the checks."""
    timer = Timer()
    timer.watch(IN_PREPARING)
    loss, tokenizer = open_loss("dpo", {}), make_starter_tokenizer()
    os.environ["MINT_TRAIN_CACHE"] += "-fresh"
    began = time.perf_counter()
    build_dataset(read_examples(find_data(data, loss), loss), loss, tokenizer, Settings(loss="dpo"))
    whole = time.perf_counter() - began
    checks = timer.seconds + seconds_of_keys(data)
    return f"{100 * checks / whole:.1f} % of {whole:.1f} s"


def seconds_of_keys(data: Path) -> float:
    """Return what it takes to notice keys that stand twice, in the two passes over the rows."""
    lines = data.read_text().splitlines()
    hooked = json.JSONDecoder(object_pairs_hook=lambda members: dict(members))
    times: dict[str, list[float]] = {"plain": [], "hooked": []}
    for _ in range(5):
        for name, decoder in (("plain", json.JSONDecoder()), ("hooked", hooked)):
            began = time.perf_counter()
            for line in lines:
                decoder.decode(line)
            times[name].append(time.perf_counter() - began)
    return 2 * max(0.0, statistics.median(times["hooked"]) - statistics.median(times["plain"]))


if __name__ == "__main__":
    main()
