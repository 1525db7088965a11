"""Time and memory of a training step: this project beside TRL, with the same model, rows and loss.

    python benchmarks/local_vs_trl.py --data dpo_en_demo.json --trl-python VENV/bin/python
        [--loss dpo|simpo|orpo|kto|ranking|grpo] [--shape 26M|qwen3-0.6b]

Both sides have the same adapter at step 1. SimPO and ORPO run beside TRL's CPOTrainer and ORPOTrainer; TRL's
ORPO has the NLL of the prompts in its loss, so ours has it here. KTO's completions have a prompt each, and
its baseline is TRL's: the batch's completions, each on its neighbour's prompt. TRL has no trainer for a
ranking of 4: its DPOTrainer gets the six pairs, whose mean loss ours computes of the four completions.
Rollouts for TRL's GRPOTrainer lie ready (`rollout_func`), so that its update is timed alone.

The sides run in turn, each in a fresh process, `--rounds` times. Speeds are printed only if the loss, the
logprobs and the gradient's norm of all sides agree at step 1. Only the interpreter given by `--trl-python`
needs TRL.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from local_losses import LOSSES, REFERENCED, Facts, LossOf, Step, loss_function, make_steps
from local_models import (
    EPOCHS,
    LEARNING_RATE,
    SHAPES,
    load_model,
    lora_config,
    peak_memory,
    prepare,
    seed_adapter,
)

SIDES = ("ours", "trl", "trl-precomputed")
AGREEMENT = 1e-4
PRECOMPUTED = {"time of TRL with precomputed reference": 0.25}
BARS = {
    "26M": {"time of TRL": 0.14, "memory of TRL": 0.18, "floor": 1.25, **PRECOMPUTED},
    "qwen3-0.6b": {"time of TRL": 0.16, "memory of TRL": 0.30, "floor": 1.25, **PRECOMPUTED},
}
"""Of DPO, by the model's shape."""
OTHER_BARS = {"time of TRL": 0.25, "memory of TRL": 0.25}
"""Of losses other than DPO."""


def main() -> int:
    options = parse_options()
    if options.side:
        if options.side == "ours":
            result = run_ours(options)
        else:
            from local_trl import run_trl

            result = run_trl(options)
        Path(options.result).write_text(json.dumps(result))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        options.folder = folder
        prepare(options)
        rounds = [
            {side: in_fresh_process(side, options) for side in options.sides} for _ in range(options.rounds)
        ]
    return report(rounds, options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="pairs in ShareGPT form")
    parser.add_argument("--trl-python", default=sys.executable, help="an interpreter that has trl")
    parser.add_argument("--loss", choices=LOSSES, default="dpo")
    parser.add_argument("--shape", choices=SHAPES, default="26M", help="of the model")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="by default all that the loss has")
    parser.add_argument("--pairs", type=int, default=20, help="pairs in the data set")
    parser.add_argument("--batch-size", type=int, default=4, help="pairs per step")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=6, help="steps per run; the first one is a warm-up")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", help="write all figures to this JSON file")
    for name in ("--side", "--folder", "--result"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    possible = SIDES if options.loss in REFERENCED else SIDES[:2]
    if set(options.sides or ()) - set(possible):
        parser.error(f"--sides trl-precomputed: {options.loss} has no reference")
    options.sides = options.sides or possible
    return options


def in_fresh_process(side: str, options: argparse.Namespace) -> dict[str, Any]:
    result = Path(options.folder) / f"{side}.json"
    passed = {
        name: getattr(options, name)
        for name in ("data", "folder", "loss", "max_length", "batch_size", "steps", "threads")
    }
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in passed.items()]
    python = sys.executable if side == "ours" else options.trl_python
    command = [python, __file__, f"--side={side}", f"--result={result}", *flags]
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    print(f"running {side} ...", file=sys.stderr, flush=True)
    finished = subprocess.run(
        command, env={**os.environ, **quiet}, capture_output=True, text=True, check=False
    )
    if finished.returncode:
        raise SystemExit(f"{side} failed:\n{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}")
    return dict(json.loads(result.read_text()))


# --- this project ---


def run_ours(options: argparse.Namespace) -> dict[str, Any]:
    import time

    import torch
    from peft import get_peft_model

    from mint_train.backends.local.engine import Engine

    model = get_peft_model(load_model(options), lora_config())
    seed_adapter(model)
    engine = Engine(model)
    optimizer = torch.optim.AdamW(engine.trained, lr=LEARNING_RATE, weight_decay=0)
    steps = make_steps(options.loss, Path(options.folder), options.batch_size, options.max_length)
    referenced = options.loss in REFERENCED
    begin, cpu = time.perf_counter(), time.process_time()
    reference = [
        [float(x.sum()) for x in engine.forward(step.sequences, adapter=False)] if referenced else []
        for step in steps
    ]
    shared_over = EPOCHS * len(steps)
    reference_seconds = (time.perf_counter() - begin) / shared_over
    reference_cpu = (time.process_time() - cpu) / shared_over
    seconds, cpu_seconds, rates, facts = [], [], [], []
    for number in range(options.steps):
        at = number % len(steps)
        begin, cpu = time.perf_counter(), time.process_time()
        loss_of = loss_function(options.loss, steps[at], reference[at])
        facts.append(take_step(engine, optimizer, steps[at].sequences, loss_of))
        seconds.append(time.perf_counter() - begin)
        cpu_seconds.append(time.process_time() - cpu)
        # Measured next to each step, because other programs slow down both.
        rates.append(matrix_rate())
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "reference_seconds": reference_seconds,
        "reference_cpu_seconds": reference_cpu,
        "peak_gb": peak_memory(),
        "first": facts[0],
        "tokens": [sum(len(s.input_tokens) + 1 for s in step.sequences) for step in steps],
        "matrix_rates": rates,
        "operations": count_operations(engine, steps, referenced=referenced),
    }


def matrix_rate(size: int = 2048) -> float:
    """Measure the operations per CPU second of a square float32 matrix product."""
    import time

    import torch

    left, right, product = torch.ones(size, size), torch.ones(size, size), torch.empty(size, size)
    times = []
    for _ in range(4):
        begin = time.process_time()
        torch.mm(left, right, out=product)
        times.append(time.process_time() - begin)
    # The first one is a warm-up.
    return float(2 * size**3 / statistics.median(times[1:]))


def take_step(engine: Any, optimizer: Any, batch: list[Any], loss_of: LossOf) -> Facts:
    """Take a step with a function of the logprobs."""
    import torch

    facts: Facts = {}

    def loss_fn(logprobs: list[torch.Tensor]) -> torch.Tensor:
        loss, found = loss_of(logprobs)
        facts.update(found)
        return loss

    optimizer.zero_grad(set_to_none=True)
    engine.forward_backward(batch, loss_fn)
    facts["gradient"] = torch.nn.utils.clip_grad_norm_(engine.trained, 1.0).item()
    optimizer.step()
    return facts


def count_operations(engine: Any, steps: list[Step], *, referenced: bool) -> list[float]:
    """Count the floating-point operations of each step, including its share of a reference.

    Only what must be computed counts: no padding, a shared prompt once, the vocabulary at trained targets
    only, the causal half of attention, no backward of what is only measured, nothing recomputed in it.
    """
    from torch import nn

    from mint_train.backends.local.packing import plan_packs

    config = engine.model.config
    base = [m for name, m in engine.model.named_modules() if name.endswith("base_layer")]
    assert all(isinstance(layer, nn.Linear) for layer in base)
    weights = sum(layer.weight.numel() for layer in base)
    adapter = sum(parameter.numel() for parameter in engine.trained)
    of_first = {
        "q_proj",
        "k_proj",
        "v_proj",
    }  # no gradient passes below the first layer, because the embeddings are frozen
    ends = sum(
        parameter.numel()
        for name, parameter in engine.model.named_parameters()
        if ".layers.0." in name and of_first & set(name.split(".")) and "lora_B" not in name
    )

    def parts(sequences: list[Any]) -> tuple[float, float, float, int]:
        """Count those of the vocabulary, of attention and of the layers, and the rows."""
        (pack,) = plan_packs(sequences, sys.maxsize)
        vocabulary = 2 * len(pack.lookup_rows) * config.hidden_size * config.vocab_size
        seen = sum(
            (segment.stop - segment.start) * (segment.context_length + (segment.stop - segment.start) / 2)
            for segment in pack.segments
        )
        width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
        return vocabulary, 2 * 2 * seen * width, 2 * pack.rows * weights, pack.rows

    counts = []
    for step in steps:
        vocabulary, attention, layers, rows = parts(step.sequences)
        forward = vocabulary + attention + layers
        share = forward / EPOCHS if referenced else 0.0
        forward += 2 * rows * adapter
        vocabulary, attention, layers, rows = parts(step.sequences[: len(step.sequences) - step.measured])
        # the backward costs as much as the forward; for attention and for an adapter it costs twice as much
        backward = vocabulary + 2 * attention + layers + 2 * rows * (2 * adapter - ends)
        counts.append(forward + backward + share)
    return counts


# --- output ---


def report(rounds: list[dict[str, dict[str, Any]]], options: argparse.Namespace) -> int:
    if options.output:
        Path(options.output).write_text(json.dumps(rounds, indent=1))
    disagreement = differences(rounds)
    if disagreement:
        print(f"No speeds are printed, because the sides differ at step 1.\n{disagreement}")
        return 1
    figures: dict[str, dict[str, float]] = {}
    for side in rounds[0]:
        figures[side] = {
            "time": step_time(rounds, side, ""),
            "cpu": step_time(rounds, side, "cpu_"),
            "memory": statistics.median(one[side]["peak_gb"] for one in rounds),
        }
        first = rounds[0][side]["first"]
        print(
            f"{side:16} {figures[side]['time']:7.3f} s/step, {figures[side]['cpu']:7.3f} CPU s/step, "
            f"peak {figures[side]['memory']:5.2f} GB, step 1: "
            + ", ".join(f"{name} {value:.6f}" for name, value in first.items())
        )
    if "ours" in figures:
        bars = BARS[options.shape]
        print_ratios(figures, rounds, bars if options.loss == "dpo" else bars | OTHER_BARS)
    return 0


def step_time(rounds: list[dict[str, dict[str, Any]]], side: str, kind: str) -> float:
    """Return the median over rounds, then over steps (without the first), plus the reference's share."""
    steps = zip(*(one[side][f"{kind}seconds"] for one in rounds), strict=True)
    step = statistics.median([statistics.median(times) for times in steps][1:])
    return float(step + statistics.median(one[side][f"reference_{kind}seconds"] for one in rounds))


def differences(rounds: list[dict[str, dict[str, Any]]]) -> str:
    lines = []
    for one in rounds:
        expected = next(iter(one.values()))["first"]
        for side, result in one.items():
            for name, value in result["first"].items():
                if abs(value - expected[name]) > AGREEMENT * max(1.0, abs(expected[name])):
                    lines.append(f"{side}: {name} is {value}, not {expected[name]}")
    return "\n".join(lines)


def print_ratios(
    figures: dict[str, dict[str, float]], rounds: list[dict[str, dict[str, Any]]], bars: dict[str, float]
) -> None:
    ours = figures["ours"]
    over_floor, floors, rates = [], [], []
    for one in (r["ours"] for r in rounds):
        for step, rate in list(enumerate(one["matrix_rates"]))[1:]:
            floors.append(one["operations"][step % len(one["operations"])] / rate)
            over_floor.append((one["cpu_seconds"][step] + one["reference_cpu_seconds"]) / floors[-1])
            rates.append(rate)
    operations = statistics.median(rounds[0]["ours"]["operations"])
    print(
        f"\n{operations:.3g} operations; matrix products at {statistics.median(rates) / 1e9:.0f} GFLOP/CPU s"
    )
    print_bar("times the floor, in CPU seconds", statistics.median(over_floor), bars["floor"])
    for side, bar in (("trl", "time of TRL"), ("trl-precomputed", "time of TRL with precomputed reference")):
        if side in figures:
            print_bar(f"of the time of {side}", ours["time"] / figures[side]["time"], bars[bar])
            print_bar(f"of the CPU seconds of {side}", ours["cpu"] / figures[side]["cpu"], bars[bar])
            lowest = statistics.median(floors) / figures[side]["cpu"]
            print(f"{lowest:6.3f} of the CPU seconds of {side} is the floor itself")
            memory = ours["memory"] / figures[side]["memory"]
            print_bar(f"of the memory of {side}", memory, bars["memory of TRL"])


def print_bar(name: str, ratio: float, bar: float) -> None:
    print(f"{ratio:6.3f} {name} (bar {bar}: {'met' if ratio <= bar else 'NOT met'})")


if __name__ == "__main__":
    raise SystemExit(main())
