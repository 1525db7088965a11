"""The model, the tokenizer and the texts of `local_vs_trl.py`, made here for both of its sides."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from local_losses import make_rows
from model_shapes import QWEN3_600M, SHAPE_26M

RANK, LEARNING_RATE, SEED = 16, 1e-4, 0
EPOCHS = 3
"""The cost of reference logprobs, computed once, is divided by the steps of this many epochs."""
SHAPES = {"26M": SHAPE_26M, "qwen3-0.6b": QWEN3_600M}
START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


def prepare(options: argparse.Namespace) -> None:
    """Write a Qwen3 model with random weights, a tokenizer and the rows of a loss."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    rows = json.loads(Path(options.data).read_text(encoding="utf-8"))
    tokenizer = make_tokenizer([turn["value"] for row in rows for turn in turns(row)])
    tokenizer.save_pretrained(options.folder)
    torch.manual_seed(SEED)
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPES[options.shape]))
    model.save_pretrained(options.folder)
    # TRL drops a pair whose prompt alone fills the length, so take pairs that both sides can train on.
    fitting = [texts(row) for row in rows]
    fitting = [t for t in fitting if len(tokenizer(t["prompt"])["input_ids"]) < options.max_length - 16]
    needed = options.pairs * (2 if options.loss == "kto" else 1)
    if len(fitting) < needed:
        raise SystemExit(f"{options.data} has only {len(fitting)} pairs that fit; {needed} are needed")
    rows = make_rows(options.loss, fitting, options.pairs)
    (Path(options.folder) / "rows.json").write_text(json.dumps(rows))


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
        vocab_size=SHAPE_26M["vocab_size"],
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


def seed_adapter(model: Any) -> None:
    """Draw the adapter anew, so that both sides have the same one, whatever each has drawn before it."""
    import torch

    torch.manual_seed(SEED)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)


def peak_memory() -> float:
    """Return the peak memory of this process in GB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
