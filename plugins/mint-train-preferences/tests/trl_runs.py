"""Whole runs beside TRL's trainers, from the same tokens, adapter, order and optimiser.

    python plugins/mint-train-preferences/tests/trl_runs.py docs/losses.md

writes what it measured between the page's marks.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl_cases import CASES, Case

from mint_train import train
from mint_train.backends.local.adapter import LoraShape, add_adapter
from mint_train.groups.order import Order

STEPS, BATCH, RANK, SEED, LEARNING_RATE = 30, 4, 8, 0, 1e-4
ROWS = 40
WORDS = [f"w{number}" for number in range(96)]
ANSWERS = {"chosen", "rejected", "completion"}
LOSS_LIMIT, WEIGHTS_LIMIT = 1e-4, 1e-3
BEGIN, END = "<!-- parity: plugins/mint-train-preferences/tests/trl_runs.py -->", "<!-- /parity -->"


@dataclass(frozen=True)
class Difference:
    """How far a run is from TRL's."""

    loss: float
    """The largest difference of a step's loss, relative to the largest loss."""
    weights: float
    """The norm of the weights' difference, relative to that of what the run changed."""


def make_model(folder: Path) -> None:
    """Save a Qwen3 of random weights whose tokens are words, so that both sides read the same tokens."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=words, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(SEED)
    Qwen3ForCausalLM(config).save_pretrained(folder)


def make_rows() -> list[dict[str, Any]]:
    """Draw pairs of texts, every prompt another one."""
    drawn = random.Random(SEED)

    def text(least: int, most: int) -> str:
        return " ".join(drawn.choice(WORDS) for _ in range(drawn.randint(least, most)))

    return [{"prompt": text(4, 8), "chosen": text(3, 12), "rejected": text(3, 12)} for _ in range(ROWS)]


def rated(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turn pairs into rated completions: the chosen of every other row, the rejected of the others."""
    return [
        {"prompt": row["prompt"], "completion": row["chosen" if up else "rejected"], "label": up}
        for row, up in zip(rows, [True, False] * (ROWS // 2), strict=True)
    ]


def differences(case: Case, folder: Path) -> Difference:
    """Run a case on both sides, in a folder that holds the model."""
    rows = rated(make_rows()) if case.trainer == "kto" else make_rows()
    losses, weights = run_ours(case, rows, folder)
    their_losses, their_weights, before = run_theirs(case, rows, folder)
    apart = max(abs(a - b) for a, b in zip(losses, their_losses, strict=True))
    moved = distance(weights, before)
    return Difference(apart / max(map(abs, their_losses)), distance(weights, their_weights) / moved)


def distance(some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> float:
    """Compute the norm of the difference of two sets of weights."""
    assert some.keys() == others.keys()
    return math.sqrt(sum(float((some[name] - others[name]).double().square().sum()) for name in some))


def run_ours(
    case: Case, rows: list[dict[str, Any]], folder: Path
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train with `mint_train.train`; return each step's loss and the adapter's weights."""
    data = folder / f"{case.trainer}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = folder / "run"
    train(
        case.ours,
        options=case.options,
        data=data,
        backend="local",
        model=str(folder),
        rank=RANK,
        steps=STEPS,
        batch_size=BATCH,
        lr=LEARNING_RATE,
        seed=SEED,
        output=output,
        overwrite=True,
        progress="quiet",
    )
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [line.get("metrics", line)["loss"] for line in lines]
    return losses, load_file(output / "adapter" / "adapter_model.safetensors")


def run_theirs(
    case: Case, rows: list[dict[str, Any]], folder: Path
) -> tuple[list[float], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Train with TRL's trainer; return each step's loss, and the adapter's weights after and before."""
    order = Order(ROWS, BATCH, SEED)
    indices = [index for step in range(1, STEPS + 1) for index in order.step(step)]
    model = add_adapter(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), LoraShape(RANK), SEED
    )
    before = adapter_weights(model)
    trainer = TRAINERS[case.trainer](case, rows, indices, model, folder)
    trainer.train()
    return trainer.losses, adapter_weights(trainer.model), before


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """Copy the trained adapter's weights, by the names of PEFT's files."""
    return {
        name.replace(".default.", "."): parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if ".default." in name
    }


def arguments(config_class: Callable[..., Any], case: Case, folder: Path) -> TrainingArguments:
    """Configure a trainer of TRL as this project's run is configured."""
    config: TrainingArguments = config_class(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_epsilon=1e-12,
        weight_decay=0.0,
        max_grad_norm=0.0,
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **case.config,
    )
    return config


def recorded(trainer_class: type[Any]) -> type[Any]:
    """Make a trainer that notes each step's loss."""

    class Recorded(trainer_class):  # type: ignore[misc]
        def __init__(self, **given: Any) -> None:
            self.losses: list[float] = []
            super().__init__(**given)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            result = super().compute_loss(*args, **kwargs)
            self.losses.append(float((result[0] if isinstance(result, tuple) else result).detach()))
            return result

    return Recorded


def open_trainer(
    trainer: type[Any], config: TrainingArguments, rows: list[dict[str, Any]], model: Any, folder: Path
) -> Any:
    """Open a trainer of TRL on rows of text."""
    spaced = [row | {name: f" {row[name]}" for name in ANSWERS & row.keys()} for row in rows]
    return recorded(trainer)(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(spaced),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )


def dpo(case: Case, rows: list[dict[str, Any]], indices: list[int], model: Any, folder: Path) -> Any:
    """Open TRL's DPOTrainer."""
    config = arguments(DPOConfig, case, folder)
    return open_trainer(DPOTrainer, config, [rows[index] for index in indices], model, folder)


def cpo(case: Case, rows: list[dict[str, Any]], indices: list[int], model: Any, folder: Path) -> Any:
    """Open TRL's CPOTrainer."""
    config = arguments(CPOConfig, case, folder)
    return open_trainer(CPOTrainer, config, [rows[index] for index in indices], model, folder)


class PaperORPOTrainer(ORPOTrainer):  # type: ignore[misc]
    """TRL's ORPO with the paper's NLL: over the completion alone, and the mean of each sequence's mean."""

    def concatenated_forward(self, *args: Any, **kwargs: Any) -> Any:
        chosen, rejected, chosen_logits, rejected_logits, _ = super().concatenated_forward(*args, **kwargs)
        return chosen, rejected, chosen_logits, rejected_logits, -chosen.mean()


def orpo(case: Case, rows: list[dict[str, Any]], indices: list[int], model: Any, folder: Path) -> Any:
    """Open TRL's ORPOTrainer with the paper's NLL."""
    config = arguments(ORPOConfig, case, folder)
    return open_trainer(PaperORPOTrainer, config, [rows[index] for index in indices], model, folder)


def kto(case: Case, rows: list[dict[str, Any]], indices: list[int], model: Any, folder: Path) -> Any:
    """Open TRL's KTOTrainer, its baseline measured on the next row's completion, as here."""
    config = arguments(KTOConfig, case, folder)
    unrelated = [rows[(index + 1) % ROWS]["completion"] for index in indices]

    class SameBaseline(KTOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            prepared = super()._prepare_dataset(*args, **kwargs)
            if "KL_completion_ids" not in prepared.column_names:
                return prepared
            tokens = [
                [*self._tokenizer(text)["input_ids"], self._tokenizer.eos_token_id] for text in unrelated
            ]
            return prepared.remove_columns("KL_completion_ids").add_column("KL_completion_ids", tokens)

    return open_trainer(SameBaseline, config, [rows[index] for index in indices], model, folder)


TRAINERS: dict[str, Callable[..., Any]] = {"dpo": dpo, "cpo": cpo, "orpo": orpo, "kto": kto}


def measure(folder: Path, cases: list[Case]) -> list[tuple[Case, Difference]]:
    """Run cases on both sides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's and transformers' own
        make_model(folder)
        return [(case, differences(case, folder)) for case in cases]


def parity_table(found: list[tuple[Case, Difference]]) -> str:
    """Lay out the page's table."""
    rows = [
        "| TRL 1.16 | here | largest difference of the loss | of the weights |",
        "| --- | --- | --- | --- |",
        *(
            f"| {case.theirs} | `{case.ours}` | {rounded_up(one.loss)} | {rounded_up(one.weights)} |"
            for case, one in found
        ),
    ]
    return "\n".join([BEGIN, "", *rows, "", END])


def rounded_up(value: float) -> str:
    """Round up to 1, 2 or 5 times a power of ten: the last digits are another machine's own."""
    power = 10.0 ** math.floor(math.log10(max(value, 1e-9)))
    return next(f"{step * power:.0e}" for step in (1, 2, 5, 10) if value <= step * power * (1 + 1e-9))


def main() -> None:
    """Measure all cases, and write the table into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("page", type=Path)
    path = parser.parse_args().page
    with tempfile.TemporaryDirectory() as folder:
        table = parity_table(measure(Path(folder), CASES))
    page = path.read_text(encoding="utf-8")
    written = re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: table, page, flags=re.DOTALL)
    path.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
