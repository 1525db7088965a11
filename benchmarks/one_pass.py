"""A step of `sft`, a loss that is linear in the logprobs: one pass over the model beside two.

    python benchmarks/one_pass.py [--rounds N] [--only local|service]

- Embedded backend: 4 pairs of 512 tokens, a Qwen3 shape of 26M random parameters, float32, LoRA rank 16, each
  case in a fresh process, CPU seconds over all threads. A batch whose activations fit into memory takes one
  pass for any loss.
- Service: `mint-train` on a TuFT server (installed the first time) with the same shape, 4 pairs, wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
PAIRS, TOKENS, PROMPT = 4, 512, 128
BUDGETS = {"fits into memory": 10**6, "does not fit": 1024}
"""Tokens whose activations may be held at once."""
FORMS = ("two", "one")
"""How many passes a step takes."""
STEPS, WARM_STEPS = 6, 2
WORDS = 16
"""Of a completion on the service."""
BAR = 0.7


def main() -> int:
    """Measure both backends, and print a line for each case; the status is 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["local", "service"])
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(*options.case)))
        return 0
    missed = False
    if options.only != "service":
        missed |= local(options.rounds)
    if options.only != "local":
        missed |= service(options.rounds)
    return int(missed)


def local(rounds: int) -> bool:
    """Measure the embedded backend; return whether the bar was missed."""
    ratios = {}
    for case in BUDGETS:
        turns = [{form: in_fresh_process(case, form) for form in FORMS} for _ in range(rounds)]
        found = {form: [turn[form] for turn in turns] for form in FORMS}
        losses = {one["loss"] for runs in found.values() for one in runs}
        assert len(losses) == 1, losses
        cpu, gb = (
            {form: statistics.median(one[key] for one in runs) for form, runs in found.items()}
            for key in ("cpu", "step_gb")
        )
        ratios[case] = cpu["one"] / cpu["two"]
        print(
            f"embedded, a batch that {case}: {cpu['two']:.2f} CPU s and {gb['two']:.2f} GB for a step as "
            f"other losses take it, {cpu['one']:.2f} and {gb['one']:.2f} in one pass: {ratios[case]:.2f}",
            flush=True,
        )
    return ratios["does not fit"] > BAR


def in_fresh_process(*case: str) -> dict[str, float]:
    """Measure a case in a new process."""
    command = [sys.executable, __file__, "--case", *case]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(case: str, form: str) -> dict[str, float]:
    """Take one step to warm up and one that counts."""
    import torch
    from gpu_models import Bench
    from model_shapes import SHAPE_26M

    from mint_train.backends.local.client import LocalTrainingClient
    from mint_train.backends.local.engine import Engine
    from mint_train.losses.custom_loss import CustomLoss
    from mint_train.losses.weighted_sum import open_loss
    from mint_train.testing import make_batch, make_group

    bench = Bench(tiny=True)
    model: Any = bench.adapt(bench.make_base(SHAPE_26M, torch.float32))
    engine = Engine(model, max_tokens_in_flight=BUDGETS[case])
    tokenizer: Any = None  # a step needs none
    client = LocalTrainingClient(model, tokenizer, engine, Path())
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(SHAPE_26M["vocab_size"]) for _ in range(count)]

    def step(length: int) -> float:
        pairs = [
            make_group([tokens(length - PROMPT) for _ in range(2)], prompt=tokens(PROMPT))
            for _ in range(PAIRS)
        ]
        custom = CustomLoss(open_loss("sft", {}), [make_batch(*pairs)], {})
        known = custom.known_gradients() if form == "one" else None
        client.forward_backward_custom(custom.step.data, custom, known)
        return custom.metrics["loss"]

    step(PROMPT + 8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    loss = step(TOKENS)
    cpu = time.process_time() - began
    step_gb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    return {"cpu": cpu, "step_gb": step_gb, "loss": loss}


def service(rounds: int) -> bool:
    """Measure a service; return whether the bar was missed."""
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, served(Path(name)) as train:
        for _ in range(rounds):
            for form, own in seconds.items():
                lines = train(form)
                own += [line["seconds"] for line in lines[WARM_STEPS:]]
                losses[form] = [line["metrics"]["loss"] for line in lines]
    medians = {form: statistics.median(own) for form, own in seconds.items()}
    ratio = medians["one"] / medians["two"]
    worst = max(abs(one / two - 1) for one, two in zip(losses["one"], losses["two"], strict=True))
    print(
        f"service: {medians['two']:.2f} s for a step by two requests, {medians['one']:.2f} s by one: "
        f"{ratio:.2f} (at most {BAR}); the losses differ by {worst:.1e} at most"
    )
    return ratio > BAR


@contextmanager
def served(folder: Path) -> Iterator[Any]:
    """Start a server, and give what trains on it in a form and returns the lines of its steps."""
    import torch
    from model_shapes import SHAPE_26M
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from mint_train.backends.local.starter_model import make_starter_tokenizer

    sys.path[:0] = [str(TESTS / "servers"), str(TESTS)]
    from environments import SDKS, installed_sdk
    from server import TUFT_KEY, running_tuft
    from warm_python import started

    (folder / "model").mkdir()
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**SHAPE_26M)).save_pretrained(folder / "model")
    make_starter_tokenizer().save_pretrained(folder / "model")
    write_pairs(folder / "pairs.jsonl")
    with running_tuft(folder / "model", folder) as server, started(folder, installed_sdk(SDKS[0])) as python:
        variables = {"MINT_API_KEY": TUFT_KEY, "MINT_BASE_URL": server.base_url}
        variables |= {"MINT_BASE_MODEL": server.model, "MINT_TRAIN_CACHE": str(folder / "cache")}

        def run(code: str) -> None:
            imports = f"import sys; sys.path += {sys.path[:2]}; import mint_train, one_request; "
            subprocess.run(
                [python, "-c", imports + code], cwd=folder, env=os.environ | variables, check=True,
                stdout=sys.stderr,
            )  # fmt: skip

        # both forms begin with one adapter, which no seed may decide on a server
        run("mint_train.train('sft', data='pairs.jsonl', steps=1, lr=1e-6, output='start')")

        def train(form: str) -> list[dict[str, Any]]:
            run(f"one_request.train({form!r}, 'start', {STEPS})")
            return [json.loads(line) for line in (folder / f"sft-{form}" / "metrics.jsonl").open()]

        yield train


def write_pairs(path: Path) -> None:
    """Write as many pairs as a step takes."""
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choice(["river", "stone", "morning", "seven", "green"]) for _ in range(words))

    rows = [{"prompt": text(8), "chosen": text(WORDS), "rejected": text(WORDS)} for _ in range(PAIRS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
