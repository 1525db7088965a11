"""Opening the embedded backend: a base model from a hub name, a folder, or made on the spot."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
from huggingface_hub.utils import logging as hub_logging
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from mint_train.backends.local.client import LocalTrainingClient, model_errors
from mint_train.backends.local.engine import Engine
from mint_train.backends.local.starter_model import save_starter_model
from mint_train.errors import UserError

LORA_ALPHA = 32
"""The service's own alpha, so that one learning rate means the same on both backends."""


LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
"""What transformers raises for missing, broken and unfit files."""

Dtype = Literal["auto", "float32", "bfloat16"]


def open_local_client(
    model: str | None,
    rank: int,
    seed: int,
    folder: Path,
    *,
    dtype: Dtype = "auto",
    max_tokens_in_flight: int | None = None,
    gradient_checkpointing: bool = False,
) -> LocalTrainingClient:
    """Load or make the base model, put a fresh LoRA adapter on it, and return a training client.

    Args:
        model: hub name or folder; None makes the starter model in `folder/base_model`.
        rank: LoRA rank.
        seed: seed of the adapter's weights.
        folder: where the client saves states and the adapter.
        dtype: of the frozen weights; auto is bfloat16 on CUDA and float32 elsewhere.
        max_tokens_in_flight: tokens whose activations are kept at once; None for what memory holds.
        gradient_checkpointing: recompute activations in the backward.

    Raises:
        UserError: the model cannot be loaded.
        BackendError: it cannot compute.
    """
    transformers.utils.logging.disable_progress_bar()
    if model is None:
        model = str(folder / "base_model")
        save_starter_model(Path(model))
    base, tokenizer = load_base(model, dtype)
    adapted = add_adapter(base, rank, seed)
    with model_errors():
        engine = Engine(
            adapted, max_tokens_in_flight=max_tokens_in_flight, gradient_checkpointing=gradient_checkpointing
        )
    return LocalTrainingClient(adapted, tokenizer, engine, folder)


def load_base(name: str, dtype: Dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal model and its tokenizer; safetensors only, and no code of the model's own is run.

    Raises:
        UserError: in one line, which of both is missing and why.
    """
    tokenizer = load_tokenizer(name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = dtype == "bfloat16" or (dtype == "auto" and device == "cuda")
    try:
        base: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.bfloat16 if half else torch.float32, use_safetensors=True
        )
    except LOADING_ERRORS as error:
        raise cannot_load(name, "model", error) from error
    base.to(device)
    base.eval()
    return base, tokenizer


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Raises:
        UserError: it cannot be loaded, or could end no completion.
    """
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise UserError(f"--model {name}: there is no such folder")
    # It would log each of its tries to reach the hub.
    hub_logging.set_verbosity_error()
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
    except LOADING_ERRORS as error:
        raise cannot_load(name, "tokenizer", error) from error
    # Without its files some classes give a tokenizer that knows nothing.
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise UserError(f"--model {name}: the tokenizer has no vocabulary; its files are missing")
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"--model {name}: its tokenizer has no end-of-sequence token, so no completion could end"
        )
    return cast("PreTrainedTokenizerBase", tokenizer)


def cannot_load(name: str, part: str, error: Exception) -> UserError:
    """Say in one line which part of a model is missing, and why."""
    reason = " ".join(str(error).split())
    return UserError(f"--model {name}: the {part} cannot be loaded as a folder or from the hub: {reason}")


def add_adapter(base: PreTrainedModel, rank: int, seed: int) -> PeftModel:
    """Put a LoRA adapter on every linear layer; it starts as the identity (B = 0)."""
    config = LoraConfig(
        r=rank, lora_alpha=LORA_ALPHA, target_modules=linear_layers(base), task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT reads an attribute that transformers has renamed
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        return get_peft_model(base, config)


def linear_layers(base: PreTrainedModel) -> list[str]:
    """Name the linear layers, the output layer among them unless it shares the embedding's weights."""
    output = base.get_output_embeddings()
    tied = base.config.tie_word_embeddings
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in base.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D) and not (tied and module is output)
        }
    )
