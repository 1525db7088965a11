"""Step time and memory of the embedded backend from 1 to 64 pairs, with a fixed `--max-tokens-in-flight`.

    python benchmarks/local_scaling.py --data dpo_en_demo.json [--figure docs/figures/local-scaling.svg]

Model, pairs and step are those of `local_vs_trl.py`, without a reference. Each count runs in a fresh
process. Times are CPU seconds over all threads, which depend less on other programs than wall time.
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
from pathlib import Path
from typing import Any

from local_losses import loss_function, make_steps
from local_models import LEARNING_RATE, load_model, lora_config, peak_memory, prepare
from local_vs_trl import take_step

COUNTS = (1, 2, 4, 8, 16, 32, 64)
HEADS = ("pairs", "tokens", "micro-batches", "CPU s per step", "CPU s per 1,000 tokens", "peak memory, GB")


def main() -> int:
    options = parse_options()
    if options.result:
        Path(options.result).write_text(json.dumps(measure(options)))
        return 0
    print(f"| {' | '.join(HEADS)} |\n|{' ---: |' * len(HEADS)}")
    table = []
    with tempfile.TemporaryDirectory() as folder:
        options.folder, options.pairs = folder, max(options.counts)
        options.loss, options.shape = "dpo", "26M"
        prepare(options)
        for count in options.counts:
            options.count = count
            table.append(in_fresh_process(options))
            print(f"| {' | '.join(cells(table[-1]))} |", flush=True)
    if options.figure:
        draw(table, options.max_tokens_in_flight, options.figure)
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="pairs in ShareGPT form")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="pairs per step")
    parser.add_argument("--max-tokens-in-flight", type=int, default=1024)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3, help="steps per count, after a warm-up")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--figure", type=Path, help="draw the table as an SVG file (needs matplotlib)")
    for name in ("--folder", "--result"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def in_fresh_process(options: argparse.Namespace) -> dict[str, Any]:
    result = Path(options.folder) / "result.json"
    names = ("data", "folder", "count", "max_tokens_in_flight", "max_length", "steps", "threads")
    flags = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, f"--result={result}", *flags]
    finished = subprocess.run(
        command, env={**os.environ, **quiet}, capture_output=True, text=True, check=False
    )
    if finished.returncode:
        raise SystemExit(f"{options.count} pairs failed:\n{finished.stderr[-4000:]}")
    return dict(json.loads(result.read_text()))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Take steps on the first pairs of the data, in this process."""
    import torch
    from peft import get_peft_model

    from mint_train.backends.local.engine import Engine
    from mint_train.backends.local.packing import plan_packs

    budget = options.max_tokens_in_flight
    engine = Engine(get_peft_model(load_model(options), lora_config()), max_tokens_in_flight=budget)
    optimizer = torch.optim.AdamW(engine.trained, lr=LEARNING_RATE, weight_decay=0)
    step = make_steps("dpo", Path(options.folder), options.count, options.max_length)[0]
    batch, loss_of = step.sequences, loss_function("dpo", step, [0.0])
    # One pair is enough for the warm-up.
    take_step(engine, optimizer, batch[:2], loss_of)
    seconds = []
    for _ in range(options.steps):
        begin = time.process_time()
        take_step(engine, optimizer, batch, loss_of)
        seconds.append(time.process_time() - begin)
    return {
        "pairs": options.count,
        "tokens": sum(len(sequence.input_tokens) + 1 for sequence in batch),
        "micro_batches": len(plan_packs(batch, min(engine.rows_per_pack, budget))),
        "cpu_seconds": statistics.median(seconds),
        "peak_gb": peak_memory(),
    }


def cells(row: dict[str, Any]) -> list[str]:
    per_thousand = 1000 * row["cpu_seconds"] / row["tokens"]
    counts = [f"{row[name]:,}" for name in ("pairs", "tokens", "micro_batches")]
    return [*counts, f"{row['cpu_seconds']:.2f}", f"{per_thousand:.2f}", f"{row['peak_gb']:.2f}"]


def draw(table: list[dict[str, Any]], budget: int, path: Path) -> None:
    """Draw both curves over the number of pairs as SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.hashsalt": "local-scaling", "font.size": 9})
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    pairs = [row["pairs"] for row in table]
    labels = {"cpu_seconds": "CPU seconds per step", "peak_gb": "peak memory, GB"}
    for axes, (name, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        axes.plot(pairs, [row[name] for row in table], marker="o")
        axes.set(xlabel=f"pairs per step ({budget:,} tokens in flight)", ylabel=label, ylim=(0, None))
        axes.set_xticks([count for count in pairs if count == 1 or count >= max(pairs) / 8])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    raise SystemExit(main())
