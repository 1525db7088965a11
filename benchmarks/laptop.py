"""The page's model without a GPU: memory while it is loaded, and a DPO step in float32 and bfloat16.

    python benchmarks/laptop.py [--pairs 4] [--tokens 512] [--steps 2] [--quantize int8 nf4]

With --quantize each dtype is measured with quantised weights too, which needs bitsandbytes.
The shape of Qwen3-0.6B with random weights, saved in bfloat16 as the hub has it, LoRA rank 16, a prompt of a
quarter of each sequence. Each dtype runs in a fresh process. Memory is told apart: pages of the model's file,
which the system may drop and read again, and memory of the process itself, as a copy of the weights would be.
Times are CPU seconds over all threads, which depend less on other programs than wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from threading import Event, Thread
from typing import Any

DTYPES = ("float32", "bfloat16")
WATCHED_SECONDS = 0.005


def main() -> int:
    options = parse_options()
    if options.dtype:
        print(json.dumps(measure(options)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        options.folder = folder
        subprocess.run([sys.executable, __file__, "--dtype=saved", f"--folder={folder}"], check=True)
        results = {case: in_fresh_process(case, options) for case in product(DTYPES, ("", *options.quantize))}
    exact = results["float32", ""]
    for case, one in results.items():
        apart = [abs(a - b) for a, b in zip(exact["logprobs"], one["logprobs"], strict=True)]
        print(
            f"{' '.join(case):13} weights {one['weights']:.2f} GB; peak while loading: own memory "
            f"{one['own']:.2f} GB, pages of the file {one['file']:.2f} GB; a step {one['cpu']:.1f} CPU s, "
            f"{one['wall']:.1f} s, peak {one['peak']:.2f} GB"
        )
        print(
            f"{'':13} {one['cpu'] / exact['cpu']:.2f} of float32's CPU seconds; logprobs differ by "
            f"{max(apart):.2g} nats at most, {statistics.mean(apart):.2g} on average"
        )
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512, help="of each sequence")
    parser.add_argument("--steps", type=int, default=2, help="after one pair to warm up")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quantize", nargs="*", choices=("int8", "nf4"), default=[])
    parser.add_argument("--gradient-checkpointing", action="store_true")
    for name in ("--dtype", "--kind", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


def in_fresh_process(case: tuple[str, str], options: argparse.Namespace) -> dict[str, Any]:
    flags = [
        f"--{name}={getattr(options, name)}" for name in ("folder", "pairs", "tokens", "steps", "threads")
    ]
    flags += ["--gradient-checkpointing"] * options.gradient_checkpointing
    command = [sys.executable, __file__, f"--dtype={case[0]}", f"--kind={case[1]}", *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Load the model and take steps; `saved` only makes it."""
    import torch
    from gpu_models import LEARNING_RATE, Bench, Case, dpo_loss, sequences_of
    from model_shapes import QWEN3_600M

    torch.set_num_threads(options.threads)
    bench = Bench(tiny=True)
    if options.dtype == "saved":
        bench.make_base(QWEN3_600M, torch.bfloat16).save_pretrained(options.folder)
        return {}
    from mint_train.backends.local.engine import Engine
    from mint_train.backends.local.load import load_model

    before = memory()
    with watched_memory() as peaks:
        base = load_model(options.folder, getattr(torch, options.dtype), options.kind or None)
    after = memory()
    engine = Engine(bench.adapt(base), gradient_checkpointing=options.gradient_checkpointing)
    optimizer = torch.optim.AdamW(engine.trained, lr=LEARNING_RATE, weight_decay=0)
    sequences = sequences_of(Case(options.tokens, options.pairs), QWEN3_600M)
    logprobs = torch.cat([values[values != 0] for values in engine.forward(sequences[:2])]).tolist()
    engine.forward_backward(sequences[:2], dpo_loss)
    walls, cpus = [], []
    for _ in range(options.steps):
        began, cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad(set_to_none=True)
        engine.forward_backward(sequences, dpo_loss)
        optimizer.step()
        walls.append(time.perf_counter() - began)
        cpus.append(time.process_time() - cpu)
    return {
        "weights": sum(after[kind] - before[kind] for kind in after),
        "own": peaks["RssAnon"] - before["RssAnon"],
        "file": peaks["RssFile"] - before["RssFile"],
        "wall": statistics.median(walls),
        "cpu": statistics.median(cpus),
        "peak": bench.peak_gb(),
        "logprobs": logprobs,
    }


@contextmanager
def watched_memory() -> Iterator[dict[str, float]]:
    """Follow the memory of this process, and give its peaks."""
    peaks, done = memory(), Event()

    def follow() -> None:
        while not done.wait(WATCHED_SECONDS):
            for kind, size in memory().items():
                peaks[kind] = max(peaks[kind], size)

    thread = Thread(target=follow)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def memory() -> dict[str, float]:
    """Return the process's own memory and its pages of files, in GB (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {kind: int(lines[kind].split()[0]) * 1024 / 1e9 for kind in ("RssAnon", "RssFile")}


if __name__ == "__main__":
    raise SystemExit(main())
