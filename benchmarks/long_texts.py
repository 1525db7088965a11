"""CPU time and memory of a step on long texts, and of a ranking whose completions share a long prompt.

    python benchmarks/long_texts.py [--rounds N]

A Qwen3 shape of 26M random parameters in float32, LoRA rank 16, random tokens, each case in a fresh process.
The pairs have a prompt of a quarter of their length. The ranking has 8 completions of 128 tokens on a prompt
of 2,048 tokens, once with the prompt computed once and once with it computed for each completion. Times are
CPU seconds over all threads, which depend less on other programs than wall time.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from model_shapes import SHAPE_26M

CASES = {"a pair of 1,024": 1024, "a pair of 4,096": 4096, "ranking, shared": 0, "ranking, not shared": 0}
PROMPT, COMPLETION, COMPLETIONS = 2048, 128, 8
MEMORY_BAR, RANKING_BAR = 2.0, 0.3
NEVER_SHARED = 10**9


def main() -> int:
    """Measure the cases in turn, and print a line each and two ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case)))
        return 0
    figures: dict[str, dict[str, float]] = {}
    rounds = [{name: in_fresh_process(name) for name in CASES} for _ in range(options.rounds)]
    for name in CASES:
        figures[name] = {
            key: statistics.median(one[name][key] for one in rounds) for key in ("cpu", "step_gb", "tokens")
        }
        one = figures[name]
        thousands = one["tokens"] / 1000
        print(
            f"{name:20} {one['cpu']:7.2f} CPU s per step, {one['step_gb']:5.2f} GB for the step; per 1,000 "
            f"tokens {one['cpu'] / thousands:6.2f} CPU s, {one['step_gb'] / thousands:6.3f} GB"
        )
    short, long, shared, apart = (figures[name] for name in CASES)
    memory = (long["step_gb"] / long["tokens"]) / (short["step_gb"] / short["tokens"])
    ranking = shared["cpu"] / apart["cpu"]
    print(f"memory per token at 4,096 tokens: {memory:.2f} of that at 1,024 (at most {MEMORY_BAR})")
    print(f"ranking with a shared prompt: {ranking:.2f} of the time without sharing (at most {RANKING_BAR})")
    return int(memory > MEMORY_BAR or ranking > RANKING_BAR)


def in_fresh_process(name: str) -> dict[str, float]:
    """Measure a case in a new process."""
    command = [sys.executable, __file__, f"--case={name}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(name: str) -> dict[str, float]:
    """Take one step to warm up and one that counts."""
    import torch
    from gpu_models import Bench, Case, dpo_loss, sequences_of

    from mint_train.backends.local.engine import Engine

    bench = Bench(tiny=True)
    rank = name.startswith("ranking")
    options = {"min_shared_tokens": NEVER_SHARED} if name == "ranking, not shared" else {}
    engine = Engine(bench.adapt(bench.make_base(SHAPE_26M, torch.float32)), **options)
    sequences = make_ranking() if rank else sequences_of(Case(CASES[name], 1), SHAPE_26M)
    engine.forward_backward(sequences_of(Case(64, 1), SHAPE_26M), dpo_loss)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    engine.forward_backward(sequences, dpo_loss)
    cpu = time.process_time() - began
    step_gb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    tokens = sum(len(sequence.input_tokens) + 1 for sequence in sequences)
    return {"cpu": cpu, "step_gb": step_gb, "tokens": tokens}


def make_ranking() -> list[Any]:
    """Make completions on one prompt, ready for the engine."""
    import torch

    from mint_train.backends.local.packing import TokenSequence

    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(SHAPE_26M["vocab_size"], (PROMPT,), generator=generator)
    sequences = []
    for _ in range(COMPLETIONS):
        completion = torch.randint(SHAPE_26M["vocab_size"], (COMPLETION,), generator=generator)
        tokens = torch.cat([prompt, completion])
        sequences.append(TokenSequence(tokens[:-1], tokens[1:], torch.arange(1, len(tokens)) >= PROMPT))
    return sequences


if __name__ == "__main__":
    raise SystemExit(main())
