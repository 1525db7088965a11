"""DPO steps at the shape of Qwen3-0.6B on a GPU: seconds, tokens, memory, and share of the matrix rate.

    python benchmarks/gpu.py [--seconds 330] [--output figures.json]      # on a GPU
    python benchmarks/gpu.py --tiny                                       # try the script on any machine

Random weights in bfloat16, LoRA rank 16 on all linear layers, random tokens; a quarter of each sequence is a
prompt that both sides of a pair share. It needs torch, transformers and PEFT, and measures TRL beside this
project if TRL can be imported. First it compares logprobs and gradients with a plain float32 forward on the
CPU. No measurement starts after `--seconds`; the most important ones come first.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

PACKAGES = ("torch", "transformers", "peft", "tinker", "trl", "datasets")
LOGPROB_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Mean absolute difference from a plain float32 forward, nats, with weights of standard deviation 0.1."""
GRADIENT_TOLERANCE = {"float32": 1e-2, "bfloat16": 0.1}
"""Norm of the difference, relative to the norm of the plain gradient."""


def main() -> int:
    """Check, measure and print; the exit status is 1 if results are not exact."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="use a tiny model, to try the script")
    parser.add_argument("--seconds", type=float, default=330, help="start no measurement after this time")
    parser.add_argument("--output", help="write all figures to this JSON file")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    if not print_versions():
        return 0
    from gpu_models import Bench, Case

    bench = Bench(tiny=options.tiny)
    print(f"bfloat16 matrix products: {bench.rate / 1e12:.2f} TFLOP/s", flush=True)
    results = [check(bench, name) for name in LOGPROB_TOLERANCE]
    short, long = (64, 128) if options.tiny else (512, 2048)
    cases = [Case(tokens, pairs) for tokens in (short, long) for pairs in ((2,) if options.tiny else (4, 16))]
    sides = ["ours", "trl"] if importable("trl") else ["ours"]
    plan = [(side, case) for case in cases for side in sides]
    plan += [("ours by segment", case) for case in (cases[0], cases[-1])]
    figures: list[dict[str, Any]] = []
    for side, case in plan:
        if time.monotonic() > deadline:
            print(f"{side:16} {case}: left out, because the time is over", flush=True)
            continue
        try:
            figures.append({"side": side, "case": str(case), **measure(bench, side, case)})
        except Exception as error:
            print(f"{side:16} {case}: {type(error).__name__}: {error}"[:400], flush=True)
        else:
            print_figures(figures[-1])
    print_ratios(figures)
    if options.output:
        Path(options.output).write_text(json.dumps(figures, indent=1))
    return 0 if all(results) else 1


def print_versions() -> bool:
    """Print what is installed; return whether the benchmark can run."""
    print(f"python {platform.python_version()}, {platform.platform()}")
    print(", ".join(f"{name} {version_of(name) or 'missing'}" for name in PACKAGES))
    missing = [name for name in PACKAGES[:3] if not version_of(name)]
    if missing:
        print(f"nothing is measured, because {', '.join(missing)} cannot be imported")
        return False
    import torch

    from mint_train.backends.local.varlen import GROUPED, VARLEN_ATTENTION

    print(f"CUDA {torch.version.cuda}, available: {torch.cuda.is_available()}")
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        print(f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
    print(f"variable-length attention: {VARLEN_ATTENTION is not None}, with grouped heads: {GROUPED}")
    return True


def version_of(name: str) -> str:
    """Return the version of an installed package, or nothing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def importable(name: str) -> bool:
    """Return whether a package can be imported; print why if it is installed and cannot."""
    try:
        importlib.import_module(name)
    except Exception as error:
        print(f"{name} is not measured: {error}"[:300], flush=True)
        return False
    return True


def check(bench: Any, name: str) -> bool:
    """Compare logprobs and gradients with a plain float32 forward on the CPU; print and judge."""
    import torch
    from gpu_models import Case, dpo_loss, plain_logprobs, sequences_of
    from model_shapes import TINY

    from mint_train.backends.local.engine import Engine

    dtype = getattr(torch, name)
    # rounded to the dtype first, so that both sides have the same weights
    base = bench.make_base(TINY, dtype, spread=0.1)
    plain, ours = bench.adapt(copy.deepcopy(base).to("cpu", torch.float32)), bench.adapt(base)
    weights = [{n: p for n, p in model.named_parameters() if p.requires_grad} for model in (plain, ours)]
    with torch.no_grad():
        for key, parameter in weights[0].items():
            parameter.normal_(std=0.05)
            weights[1][key].copy_(parameter)
    sequences = sequences_of(Case(96, 3), TINY)
    expected = [plain_logprobs(plain, sequence) for sequence in sequences]
    dpo_loss(expected).backward()
    engine = Engine(ours)
    found: list[Any] = []

    def loss(logprobs: list[Any]) -> Any:
        found.extend(values.detach() for values in logprobs)
        return dpo_loss(logprobs)

    engine.forward_backward(sequences, loss)
    apart = float(torch.cat([(a - b.detach()).abs() for a, b in zip(found, expected, strict=True)]).mean())
    gradients = [torch.cat([p.grad.float().cpu().flatten() for p in one.values()]) for one in weights]
    relative = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
    good = apart <= LOGPROB_TOLERANCE[name] and relative <= GRADIENT_TOLERANCE[name]
    print(
        f"{name}: logprobs differ by {apart:.1e} nats on average (at most {LOGPROB_TOLERANCE[name]}), "
        f"gradients by {relative:.1e} (at most {GRADIENT_TOLERANCE[name]}), mode {engine.mode.name}: "
        f"{'exact' if good else 'NOT exact'}",
        flush=True,
    )
    return good


def measure(bench: Any, side: str, case: Any) -> dict[str, Any]:
    """Measure one side with one batch."""
    bench.free()
    if side == "trl":
        from gpu_trl import measure_trl

        return measure_trl(bench, case)
    with one_call_per_segment() if side == "ours by segment" else contextlib.nullcontext():
        return measure_ours(bench, case)


def measure_ours(bench: Any, case: Any) -> dict[str, Any]:
    """Measure steps of the embedded engine, and the forward of the reference."""
    import torch
    from gpu_models import LEARNING_RATE, count_operations, dpo_loss, sequences_of

    from mint_train.backends.local.engine import Engine

    began = time.perf_counter()
    engine = Engine(bench.adapt(bench.make_base(bench.shape, torch.bfloat16)))
    opened = time.perf_counter() - began
    optimizer = torch.optim.AdamW(engine.trained, lr=LEARNING_RATE, weight_decay=0)
    sequences = sequences_of(case, bench.shape)
    reference = engine.forward(sequences, adapter=False)
    losses: list[float] = []

    def loss(logprobs: list[Any]) -> Any:
        value = dpo_loss(logprobs, reference)
        losses.append(float(value.detach()))
        return value

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        engine.forward_backward(sequences, loss)
        optimizer.step()

    forward = bench.seconds_of(lambda: engine.forward(sequences, adapter=False), 3)
    seconds = bench.seconds_of(step, 5)
    return {
        "seconds": seconds,
        "reference_seconds": forward,
        "tokens": 2 * case.pairs * case.tokens,
        "peak_gb": bench.peak_gb(),
        "share": count_operations(engine, sequences) / seconds / bench.rate,
        "loss": losses[0],
        "open_seconds": opened,
        "budget": engine.max_tokens_in_flight,
    }


@contextlib.contextmanager
def one_call_per_segment() -> Iterator[None]:
    """Compute attention segment by segment, as a torch without variable-length attention does."""
    from mint_train.backends.local import varlen

    found, varlen.VARLEN_ATTENTION = varlen.VARLEN_ATTENTION, None
    try:
        yield
    finally:
        varlen.VARLEN_ATTENTION = found


def print_figures(one: dict[str, Any]) -> None:
    """Print one measurement."""
    line = f"{one['side']:16} {one['case']}: {one['seconds']:.3f} s, "
    line += f"{one['tokens'] / one['seconds']:,.0f} tokens/s, peak {one['peak_gb']:.1f} GB, "
    line += f"loss {one['loss']:.4f}"
    if "share" in one:
        line += f", {one['share']:.1%} of the matrix rate, reference {one['reference_seconds']:.3f} s, "
        line += f"budget {one['budget']:,} tokens, opened in {one['open_seconds']:.1f} s"
    print(line, flush=True)


def print_ratios(figures: list[dict[str, Any]]) -> None:
    """Print how this project compares with the other sides, case by case."""
    ours = {one["case"]: one for one in figures if one["side"] == "ours"}
    for one in figures:
        if one["side"] != "ours" and one["case"] in ours:
            base = ours[one["case"]]
            time_ratio, memory = base["seconds"] / one["seconds"], base["peak_gb"] / one["peak_gb"]
            print(f"{one['case']}: {time_ratio:.2f} of the time of {one['side']}, {memory:.2f} of its memory")


if __name__ == "__main__":
    raise SystemExit(main())
