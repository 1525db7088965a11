"""The cost of the DPO loss without the model: loss and gradient of 1,024 pairs of 1,024 tokens per side.

Four variants compute the same number from the same logprob tensors, one per datum:

- bare: `torch.cat`, one weighted segmented sum, one `logsigmoid`, one backward; no metrics, no checks;
- dpo: the plugin called through its hook, with its metrics;
- guarded: the same inside the guard of a run (finite values, gradients for all datums);
- seed: the Python loop of `torch.dot` over datums from MinT's DPO page.

    python benchmarks/loss_cost.py [--cpu-time] [--reference] [--pairs N] ...
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid

from mint_train.batches.batch import Batch
from mint_train.batches.datums import build_datum
from mint_train.batches.groups import Group
from mint_train.errors import Source
from mint_train.losses.custom_loss import CustomLoss
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin

PROMPT_SHARE = 4
TARGET_BARE, TARGET_SEED = 1.5, 5.0


def main() -> None:
    """Measure the four in turn, so that other load on the machine affects all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--cpu-time", action="store_true", help="one thread, CPU time: for a busy machine")
    parser.add_argument("--reference", action="store_true", help="DPO with a reference (bare has none)")
    arguments = parser.parse_args()

    clock = time.process_time if arguments.cpu_time else time.perf_counter
    if arguments.cpu_time:
        torch.set_num_threads(1)
    groups = make_groups(arguments.pairs, arguments.tokens)
    logprobs = [(-torch.rand(arguments.tokens)).requires_grad_() for _ in range(2 * arguments.pairs)]
    loss = Loss.of(load_plugin("dpo"), {"reference": "initial"} if arguments.reference else {})
    variants: dict[str, Callable[[list[torch.Tensor]], torch.Tensor]] = {
        "bare": Bare(Batch(groups)),
        # a run builds a new batch from the same groups in each step
        "dpo": lambda logprobs: loss.compute(Batch(groups), logprobs, {})[0],
        "guarded": lambda logprobs: CustomLoss(loss, [Batch(groups)], {})([], logprobs)[0],
        "seed": lambda logprobs: seed_loss([d for group in groups for d in group.datums], logprobs),
    }
    seconds = measure(variants, logprobs, arguments.rounds, clock)
    clock_name = "CPU" if arguments.cpu_time else "wall"
    print(f"{arguments.pairs} pairs of {arguments.tokens} tokens, {clock_name} time")
    report(seconds)


def make_groups(pairs: int, tokens: int) -> list[Group]:
    """Build pairs of `tokens` target tokens per side, a quarter of them in the prompt, with a reference."""
    prompt = tokens // PROMPT_SHARE
    groups = []
    for number in range(pairs):
        datums = tuple(
            build_datum(range(prompt), range(first, first + tokens + 1 - prompt), None)
            for first in (0, tokens)
        )
        references = tuple(-torch.rand(tokens) for _ in datums)
        groups.append(Group(datums, Source("benchmark", number), reference_logprobs=references))
    return groups


class Bare:
    """The least that can be done: weights and lengths ready, sums, logsigmoid."""

    def __init__(self, batch: Batch) -> None:
        self.weights, self.lengths = batch.weights, batch.lengths

    def __call__(self, logprobs: list[torch.Tensor]) -> torch.Tensor:
        """Compute the loss."""
        packed = torch.cat(logprobs) * self.weights
        scores = torch.segment_reduce(packed, "sum", lengths=self.lengths, unsafe=True)
        return -logsigmoid(scores[::2] - scores[1::2]).mean()


def seed_loss(data: list, logprobs: list[torch.Tensor]) -> torch.Tensor:
    """Compute the loss as MinT's DPO page does: one `torch.dot` per datum, weights from each datum's list."""
    scores = []
    for datum, logprob in zip(data, logprobs, strict=True):
        weights = torch.tensor(datum.loss_fn_inputs["weights"].data, dtype=torch.float32)
        scores.append(torch.dot(logprob.flatten().float(), weights))
    margins = torch.stack(scores[::2]) - torch.stack(scores[1::2])
    return -logsigmoid(margins).mean()


def measure(
    variants: dict[str, Callable[[list[torch.Tensor]], torch.Tensor]],
    logprobs: list[torch.Tensor],
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, float]:
    """Return each variant's median seconds for loss and gradient."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, variant in variants.items():
            began = clock()
            value = variant(logprobs)
            gradients = torch.autograd.grad(value, logprobs)
            if number:  # the first round warms up
                seconds[name].append(clock() - began)
            del value, gradients
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(seconds: dict[str, float]) -> None:
    """Print medians, the two ratios with their targets, and the machine."""
    print("loss with gradient, medians:")
    for name, value in seconds.items():
        print(f"  {name:8} {1000 * value:8.1f} ms")
    print(f"dpo / bare      {seconds['dpo'] / seconds['bare']:.2f}  (at most {TARGET_BARE})")
    print(f"seed / dpo      {seconds['seed'] / seconds['dpo']:.2f}  (at least {TARGET_SEED})")
    print(f"guarded / bare  {seconds['guarded'] / seconds['bare']:.2f}  (the guard of a run included)")
    print(
        f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


def processor() -> str:
    """Name the processor."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
