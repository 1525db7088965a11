"""Time and memory of a step on pairs: this project beside TRL, with the same model, pairs and loss.

    python benchmarks/local_vs_trl.py --trl-python VENV/bin/python [--loss dpo|simpo|orpo]

DPO has a reference, and runs beside TRL's DPOTrainer; SimPO and ORPO have none, and run beside its CPOTrainer
and ORPOTrainer. TRL's ORPO has the NLL of the prompts in its loss, so ours has it here.

The sides run in turn, each in a fresh process, `--rounds` times. Speeds are printed only if the loss and
the logprobs of all sides agree at step 1. Only the interpreter given by `--trl-python` needs TRL.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

SIDES = ("ours", "trl", "trl-precomputed")
EPOCHS = 3
"""The cost of reference logprobs, computed once, is divided by the steps of this many epochs."""
BETA, RANK, LEARNING_RATE, SEED = 0.1, 16, 1e-4, 0
SIMPO_BETA, SIMPO_GAMMA = 2.0, 1.0
VOCABULARY = 32_768
START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
AGREEMENT = 1e-4
WITHOUT_REFERENCE = ("simpo", "orpo")
BARS = {
    "time of TRL": 0.17,
    "time of TRL with precomputed reference": 0.25,
    "memory of TRL": 0.25,
    "floor": 1.6,
}
OTHER_BARS = {"time of TRL": 0.25}
"""Where there is no reference whose cost a run shares out over its steps."""


def main() -> int:
    options = parse_options()
    if options.side:
        run = run_ours if options.side == "ours" else run_trl
        Path(options.result).write_text(json.dumps(run(options)))
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
    root = Path(__file__).resolve().parent.parent
    parser.add_argument(
        "--data", default=str(root / "../shared/data/dpo_en_demo.json"), help="pairs in ShareGPT form"
    )
    parser.add_argument("--trl-python", default=sys.executable, help="an interpreter that has trl")
    parser.add_argument("--loss", choices=["dpo", *WITHOUT_REFERENCE], default="dpo")
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
    if options.loss in WITHOUT_REFERENCE and "trl-precomputed" in (options.sides or ()):
        parser.error(f"--sides trl-precomputed: {options.loss} has no reference")
    options.sides = options.sides or [side for side in SIDES if options.loss == "dpo" or side in SIDES[:2]]
    return options


# --- shared by both sides: a model, a tokenizer and texts, made locally ---


def prepare(options: argparse.Namespace) -> None:
    """Write a Qwen3-shaped model of 26 M random parameters, a tokenizer and the pairs' texts."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    rows = json.loads(Path(options.data).read_text(encoding="utf-8"))
    tokenizer = make_tokenizer([turn["value"] for row in rows for turn in turns(row)])
    tokenizer.save_pretrained(options.folder)
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(options.folder)
    # TRL drops a pair whose prompt alone fills the length, so take pairs that both sides can train on.
    fitting = [texts(row) for row in rows]
    fitting = [t for t in fitting if len(tokenizer(t["prompt"])["input_ids"]) < options.max_length - 16]
    if len(fitting) < options.pairs:
        raise SystemExit(f"{options.data} has only {len(fitting)} pairs that fit; {options.pairs} are needed")
    (Path(options.folder) / "pairs.json").write_text(json.dumps(fitting[: options.pairs]))


def turns(row: dict[str, Any]) -> list[dict[str, str]]:
    return [*row["conversations"], row["chosen"], row["rejected"]]


def texts(row: dict[str, Any]) -> dict[str, str]:
    role = {"human": "user", "gpt": "assistant", "system": "system"}
    said = "".join(f"{START}{role[turn['from']]}\n{turn['value']}{END}\n" for turn in row["conversations"])
    answers = {side: row[side]["value"] + END for side in ("chosen", "rejected")}
    return {"prompt": f"{said}{START}assistant\n", **answers}


def make_tokenizer(corpus: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


def lora_config() -> Any:
    from peft import LoraConfig

    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return LoraConfig(r=RANK, lora_alpha=32, target_modules=linear, task_type="CAUSAL_LM")


def load_model(options: argparse.Namespace) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    return AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32)


def in_fresh_process(side: str, options: argparse.Namespace) -> dict[str, Any]:
    result = Path(options.folder) / f"{side}.json"
    passed = {
        name: getattr(options, name)
        for name in ("folder", "loss", "max_length", "batch_size", "steps", "threads")
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


def peak_memory() -> float:
    """Return the peak memory of this process in GB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# --- this project ---


def run_ours(options: argparse.Namespace) -> dict[str, Any]:
    import time

    import torch
    from peft import get_peft_model

    from mint_train.backends.local.engine import Engine

    engine = Engine(get_peft_model(load_model(options), lora_config()))
    optimizer = torch.optim.AdamW(engine.trained, lr=LEARNING_RATE, weight_decay=0)
    pairs = tokenized_pairs(options)
    starts = range(0, len(pairs), options.batch_size)
    batches = [[s for pair in pairs[i : i + options.batch_size] for s in pair] for i in starts]
    masks = [[sequence.loss_mask for sequence in batch] for batch in batches]
    if options.loss == "orpo":
        batches = [[wholly_trained(s) if n % 2 == 0 else s for n, s in enumerate(batch)] for batch in batches]
    begin, cpu = time.perf_counter(), time.process_time()
    reference = [
        [float(x.sum()) for x in engine.forward(batch, adapter=False)] if options.loss == "dpo" else []
        for batch in batches
    ]
    shared_over = EPOCHS * len(batches)
    reference_seconds = (time.perf_counter() - begin) / shared_over
    reference_cpu = (time.process_time() - cpu) / shared_over
    seconds, cpu_seconds, rates, facts = [], [], [], []
    for step in range(options.steps):
        at = step % len(batches)
        begin, cpu = time.perf_counter(), time.process_time()
        if options.loss == "dpo":
            facts.append(dpo_step(engine, optimizer, batches[at], reference[at]))
        else:
            facts.append(mean_step(options.loss, engine, optimizer, batches[at], masks[at]))
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
        "tokens": [sum(len(s.input_tokens) + 1 for s in batch) for batch in batches],
        "matrix_rates": rates,
        "operations": count_operations(engine, batches, referenced=options.loss == "dpo"),
    }


def matrix_rate(size: int = 2048) -> float:
    """Measure the operations per second of a square float32 matrix product."""
    import time

    import torch

    left, right, product = torch.ones(size, size), torch.ones(size, size), torch.empty(size, size)
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        torch.mm(left, right, out=product)
        times.append(time.perf_counter() - begin)
    # The first one is a warm-up.
    return float(2 * size**3 / statistics.median(times[1:]))


def tokenized_pairs(options: argparse.Namespace) -> list[tuple[Any, Any]]:
    import torch
    from transformers import AutoTokenizer

    from mint_train.backends.local.engine import TokenSequence

    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    pairs = []
    for pair in json.loads((Path(options.folder) / "pairs.json").read_text()):
        prompt = tokenizer(pair["prompt"])["input_ids"]
        wholes = [tokenizer(pair["prompt"] + pair[side])["input_ids"] for side in ("chosen", "rejected")]
        start = min(common_length(prompt, whole) for whole in wholes)
        sequences = []
        for whole in wholes:
            tokens = torch.tensor(whole[: options.max_length])
            trained = torch.arange(1, len(tokens)) >= start
            sequences.append(TokenSequence(tokens[:-1], tokens[1:], trained))
        pairs.append((sequences[0], sequences[1]))
    return pairs


def common_length(left: list[int], right: list[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )


def wholly_trained(sequence: Any) -> Any:
    """Return a sequence whose prompt is trained too."""
    import torch

    return replace(sequence, loss_mask=torch.ones_like(sequence.loss_mask))


def dpo_step(engine: Any, optimizer: Any, batch: list[Any], reference: list[float]) -> dict[str, float]:
    """Take a step of DPO; `reference` holds each sequence's logprob."""
    import torch
    from torch.nn.functional import logsigmoid

    def loss_of(logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        policy = torch.stack([values.sum() for values in logprobs])
        ratios = policy - torch.tensor(reference)
        return -logsigmoid(BETA * (ratios[0::2] - ratios[1::2])).mean(), policy

    return take_step(engine, optimizer, batch, loss_of)


def mean_step(loss: str, engine: Any, optimizer: Any, batch: list[Any], masks: list[Any]) -> dict[str, float]:
    """Take a step of SimPO or ORPO, which compare the mean logprobs of completions; `masks` says where."""
    import torch
    from torch.nn.functional import logsigmoid

    def loss_of(logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        means = torch.stack([values[mask].mean() for values, mask in zip(logprobs, masks, strict=True)])
        chosen, rejected = means[0::2], means[1::2]
        if loss == "simpo":
            return -logsigmoid(SIMPO_BETA * (chosen - rejected) - SIMPO_GAMMA).mean(), means
        odds = chosen - rejected - (torch.log1p(-chosen.exp()) - torch.log1p(-rejected.exp()))
        return -torch.cat(logprobs[0::2]).mean() - BETA * logsigmoid(odds).mean(), means

    return take_step(engine, optimizer, batch, loss_of)


def take_step(engine: Any, optimizer: Any, batch: list[Any], loss_of: Any) -> dict[str, float]:
    """Take a step with a function of the logprobs, which returns its loss and what each sequence scores."""
    import torch

    facts: dict[str, float] = {}

    def loss_fn(logprobs: list[torch.Tensor]) -> torch.Tensor:
        loss, scores = loss_of(logprobs)
        facts.update(loss=loss.item(), chosen=scores[0::2].mean().item(), rejected=scores[1::2].mean().item())
        return loss

    optimizer.zero_grad(set_to_none=True)
    engine.forward_backward(batch, loss_fn)
    torch.nn.utils.clip_grad_norm_(engine.trained, 1.0)
    optimizer.step()
    return facts


def count_operations(engine: Any, batches: list[Any], *, referenced: bool) -> list[float]:
    """Count the floating-point operations of each batch's step, including its share of a reference.

    Only what must be computed counts: no padding, a shared prompt once, the vocabulary at trained targets
    only, the causal half of attention, nothing recomputed in the backward.
    """
    import sys

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
    ends = [
        parameter.numel()
        for name, parameter in engine.model.named_parameters()
        if ".layers.0." in name and of_first & set(name.split(".")) and "lora_B" not in name
    ]
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    counts = []
    for batch in batches:
        (pack,) = plan_packs(batch, sys.maxsize)
        vocabulary = 2 * len(pack.lookup_rows) * config.hidden_size * config.vocab_size
        seen = sum(
            (segment.stop - segment.start) * (segment.context_length + (segment.stop - segment.start) / 2)
            for segment in pack.segments
        )
        attention = 2 * 2 * seen * width
        layers = 2 * pack.rows * weights
        # the backward costs as much as the forward; for an adapter it costs twice as much
        step = 2 * vocabulary + 3 * attention + 2 * layers + 3 * 2 * pack.rows * adapter
        share = (vocabulary + attention + layers) / EPOCHS if referenced else 0.0
        counts.append(step - 2 * pack.rows * sum(ends) + share)
    return counts


# --- TRL ---


def run_trl(options: argparse.Namespace) -> dict[str, Any]:
    import time

    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer, TrainerCallback

    config_class, trainer_class = trl_classes(options.loss)
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    precompute: list[tuple[float, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begin, self.cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.begin)
            cpu_seconds.append(time.process_time() - self.cpu)

    class InOrder(trainer_class):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            begin, cpu = time.perf_counter(), time.process_time()
            result = super()._precompute_ref_logps(*args, **kwargs)
            precompute.append((time.perf_counter() - begin, time.process_time() - cpu))
            return result

    pairs = json.loads((Path(options.folder) / "pairs.json").read_text())
    config = config_class(
        **trl_options(options),
        output_dir=str(Path(options.folder) / "trl"),
        per_device_train_batch_size=options.batch_size,
        max_steps=options.steps,
        max_length=options.max_length,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        logging_steps=1,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=SEED,
    )
    trainer = InOrder(
        model=load_model(options),
        args=config,
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(options.folder),
        peft_config=lora_config(),
        callbacks=[Clock()],
    )
    trainer.train()
    first = trainer.state.log_history[0]
    steps_of_run = EPOCHS * len(pairs) / options.batch_size
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "reference_seconds": sum(wall for wall, _ in precompute) / steps_of_run,
        "reference_cpu_seconds": sum(cpu for _, cpu in precompute) / steps_of_run,
        "peak_gb": peak_memory(),
        "first": {
            "loss": first["loss"],
            "chosen": first["logps/chosen"],
            "rejected": first["logps/rejected"],
        },
    }


def trl_classes(loss: str) -> tuple[Any, Any]:
    """Return TRL's configuration and trainer of a loss."""
    if loss == "simpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        return CPOConfig, CPOTrainer
    if loss == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOConfig, ORPOTrainer
    from trl import DPOConfig, DPOTrainer

    return DPOConfig, DPOTrainer


def trl_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what TRL's configuration of a loss is told beside what all losses have."""
    if options.loss == "simpo":
        return {"loss_type": "simpo", "beta": SIMPO_BETA, "simpo_gamma": SIMPO_GAMMA, "cpo_alpha": 0.0}
    if options.loss == "orpo":
        return {"beta": BETA}
    precomputed = options.side == "trl-precomputed"
    return {
        "beta": BETA,
        "precompute_ref_log_probs": precomputed,
        "precompute_ref_batch_size": options.batch_size,
    }


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
            f"peak {figures[side]['memory']:5.2f} GB, step 1: loss {first['loss']:.6f}, "
            f"logps {first['chosen']:.3f} / {first['rejected']:.3f}"
        )
    if "ours" in figures:
        print_ratios(figures, rounds, BARS if options.loss == "dpo" else BARS | OTHER_BARS)
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
    over_floor, speeds, rates = [], [], []
    for one in (r["ours"] for r in rounds):
        for step, rate in list(enumerate(one["matrix_rates"]))[1:]:
            at = step % len(one["operations"])
            seconds = one["seconds"][step] + one["reference_seconds"]
            over_floor.append(seconds * rate / one["operations"][at])
            speeds.append(one["tokens"][at] / seconds)
            rates.append(rate)
    operations = rounds[0]["ours"]["operations"]
    print(
        f"\n{statistics.median(speeds):.0f} tokens per second, {statistics.median(operations):.3g} operations"
    )
    print(f"matrix products at {statistics.median(rates) / 1e9:.0f} GFLOP/s")
    print_bar("times the floor", statistics.median(over_floor), bars["floor"])
    for side, bar in (("trl", "time of TRL"), ("trl-precomputed", "time of TRL with precomputed reference")):
        if side in figures:
            print_bar(f"of the time of {side}", ours["time"] / figures[side]["time"], bars[bar])
            print_bar(f"of the CPU seconds of {side}", ours["cpu"] / figures[side]["cpu"], bars[bar])
            memory = ours["memory"] / figures[side]["memory"]
            print_bar(f"of the memory of {side}", memory, bars["memory of TRL"])


def print_bar(name: str, ratio: float, bar: float) -> None:
    print(f"{ratio:6.3f} {name} (bar {bar}: {'met' if ratio <= bar else 'NOT met'})")


if __name__ == "__main__":
    raise SystemExit(main())
