"""The side of TRL in `local_vs_trl.py`; its interpreter needs nothing of this project."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from local_losses import (
    BETA,
    CLIP,
    GROUP,
    REFERENCED,
    REWARDS,
    SIMPO_BETA,
    SIMPO_GAMMA,
    rows_per_step,
    split_tokens,
)
from local_models import EPOCHS, LEARNING_RATE, SEED, load_model, lora_config, peak_memory, seed_adapter

Rows = list[dict[str, Any]]


def run_trl(options: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoTokenizer

    rows: Rows = json.loads((Path(options.folder) / "rows.json").read_text())
    size = rows_per_step(options.loss, options.batch_size)
    steps_of_run = EPOCHS * len(rows) / size
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    more: dict[str, Any] = {}
    if options.loss == "grpo":
        more = {"reward_funcs": [rewards], "rollout_func": rollouts_of(rows, tokenizer, options.max_length)}
        rows = [{"prompt": row["prompt"]} for row in rows]
    if options.loss == "ranking":
        rows = [pair for row in rows for pair in pairs_of(row)]
    config_class, trainer_class = trl_classes(options.loss)
    clock, precompute = clock_class()(), []
    trainer = in_order(trainer_class, precompute)(
        model=load_model(options),
        args=config_class(**common_options(options), **trl_options(options, size)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_config(),
        callbacks=[clock],
        **more,
    )
    seed_adapter(trainer.model)
    trainer.train()
    first = trainer.state.log_history[0]
    names = {"loss": "loss", "chosen": "logps/chosen", "rejected": "logps/rejected", "gradient": "grad_norm"}
    return {
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "reference_seconds": sum(wall for wall, _ in precompute) / steps_of_run,
        "reference_cpu_seconds": sum(cpu for _, cpu in precompute) / steps_of_run,
        "peak_gb": peak_memory(),
        "first": {ours: float(first[theirs]) for ours, theirs in names.items() if theirs in first},
    }


def pairs_of(ranking: dict[str, Any]) -> Rows:
    """Make the pairs of a ranking, better with worse."""
    return [
        {"prompt": ranking["prompt"], "chosen": better, "rejected": worse}
        for better, worse in combinations(ranking["completions"], 2)
    ]


def rollouts_of(rows: Rows, tokenizer: Any, max_length: int) -> Callable[..., dict[str, Any]]:
    """Return a function that gives TRL the completions of the rows as if they were drawn when it asks."""
    split = {row["prompt"]: split_tokens(tokenizer, row["prompt"], row["completions"]) for row in rows}

    def rollouts(prompts: Sequence[str], _: Any) -> dict[str, Any]:
        drawn: Counter[str] = Counter()
        completions = []
        for text in prompts:
            prompt, found = split[text]
            completions.append(found[drawn[text]][: max_length - len(prompt)])
            drawn[text] += 1
        return {
            "prompt_ids": [split[text][0] for text in prompts],
            "completion_ids": completions,
            "logprobs": None,
        }

    return rollouts


def rewards(prompts: Sequence[str], **_: Any) -> list[float]:
    return list(REWARDS) * (len(prompts) // GROUP)


def clock_class() -> type:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.cpu_seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begin, self.cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.begin)
            self.cpu_seconds.append(time.process_time() - self.cpu)

    return Clock


def in_order(trainer_class: type, precompute: list[tuple[float, float]]) -> type:
    """Return a trainer that takes rows in their order, and notes how long its reference takes."""
    from torch.utils.data import SequentialSampler

    class InOrder(trainer_class):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, *given: Any) -> Any:
            if trainer_class.__name__ == "GRPOTrainer":  # it repeats prompts, and is told not to shuffle
                return super()._get_train_sampler(*given)
            return SequentialSampler(self.train_dataset)

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            begin, cpu = time.perf_counter(), time.process_time()
            result = super()._precompute_ref_logps(*args, **kwargs)
            precompute.append((time.perf_counter() - begin, time.process_time() - cpu))
            return result

    return InOrder


def trl_classes(loss: str) -> tuple[Any, Any]:
    """Return TRL's configuration and trainer of a loss."""
    if loss == "simpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        return CPOConfig, CPOTrainer
    if loss == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOConfig, ORPOTrainer
    import trl

    name = {"kto": "KTO", "grpo": "GRPO"}.get(loss, "DPO")
    return getattr(trl, f"{name}Config"), getattr(trl, f"{name}Trainer")


def common_options(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "output_dir": str(Path(options.folder) / "trl"),
        "max_steps": options.steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": SEED,
    }


def trl_options(options: argparse.Namespace, rows: int) -> dict[str, Any]:
    """Return what TRL's configuration of a loss is told beside what all losses have."""
    if options.loss == "grpo":
        return {
            "per_device_train_batch_size": GROUP * rows,
            "num_generations": GROUP,
            "max_completion_length": options.max_length,
            "loss_type": "grpo",
            "beta": 0.0,
            "epsilon": CLIP,
            "shuffle_dataset": False,
        }
    if options.loss == "ranking":
        rows *= len(list(combinations(range(GROUP), 2)))
    found: dict[str, Any] = {
        "per_device_train_batch_size": rows,
        "max_length": options.max_length,
        "beta": BETA,
    }
    if options.loss == "simpo":
        found |= {"loss_type": "simpo", "beta": SIMPO_BETA, "simpo_gamma": SIMPO_GAMMA, "cpo_alpha": 0.0}
    if options.loss in REFERENCED:
        found["precompute_ref_log_probs"] = options.side == "trl-precomputed"
        found["precompute_ref_batch_size"] = rows
    return found
