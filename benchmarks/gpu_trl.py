"""TRL's side of `gpu.py`: steps of DPOTrainer with precomputed reference logprobs."""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from gpu_models import BETA, LEARNING_RATE, WARM_UPS, Bench, Case, draw_pairs, lora_config
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer

STEPS = WARM_UPS + 5
END = "<end>"


def measure_trl(bench: Bench, case: Case) -> dict[str, Any]:
    """Measure steps on the same tokens, written as words; TRL adds an end token to each completion."""
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            bench.synchronize()
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            bench.synchronize()
            times.append(time.perf_counter() - self.began)

    rows = [
        dict(zip(("prompt", "chosen", "rejected"), map(as_words, pair), strict=True))
        for pair in draw_pairs(case, bench.shape["vocab_size"] - 1)
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = DPOTrainer(
            model=bench.make_base(bench.shape, torch.bfloat16),
            args=trl_config(bench, case, folder),
            train_dataset=Dataset.from_list(rows),
            processing_class=word_tokenizer(bench.shape["vocab_size"]),
            peft_config=lora_config(),
            callbacks=[Clock()],
        )
        trainer.train()
    return {
        "seconds": statistics.median(times[WARM_UPS:]),
        "tokens": 2 * case.pairs * case.tokens,
        "peak_gb": bench.peak_gb(),
        "loss": trainer.state.log_history[0]["loss"],
    }


def trl_config(bench: Bench, case: Case, folder: str) -> DPOConfig:
    """Make TRL's configuration: bfloat16, torch's fused attention, no gradient checkpointing."""
    return DPOConfig(
        output_dir=folder,
        per_device_train_batch_size=case.pairs,
        max_steps=STEPS,
        max_length=case.tokens + 1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        beta=BETA,
        gradient_checkpointing=False,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=case.pairs,
        logging_steps=1,
        bf16=True,
        use_cpu=not bench.cuda,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )


def as_words(tokens: list[int]) -> str:
    """Write tokens as words, each after a space."""
    return "".join(f" w{token}" for token in tokens)


def word_tokenizer(vocabulary: int) -> Any:
    """Make a tokenizer with one word per token; the last token ends a completion."""
    words = {f"w{index}": index for index in range(vocabulary - 1)} | {END: vocabulary - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
