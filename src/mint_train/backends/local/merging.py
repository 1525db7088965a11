"""Merge an adapter into its base model, so that transformers can load the result without PEFT."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedTokenizerBase

from mint_train.backends.hub_model import loading_arguments
from mint_train.backends.local.load import load_base
from mint_train.errors import BackendError
from mint_train.run_folder.files import require_space


def merge_adapter(model: str, adapter: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """Add an adapter to its base model's weights, in float32, and return the model and its tokenizer.

    Args:
        model: the base model, hub name or folder.
        adapter: a folder in PEFT's format.

    Raises:
        UserError: the base model cannot be loaded.
        BackendError: the adapter is broken or belongs to another model.
    """
    transformers.utils.logging.disable_progress_bar()
    base, tokenizer = load_base(model, "float32")
    try:
        with warnings.catch_warnings():
            # PEFT reads an attribute that transformers has renamed
            warnings.simplefilter("ignore", FutureWarning)
            adapted: Any = PeftModel.from_pretrained(base, str(adapter))
            return adapted.merge_and_unload(safe_merge=True), tokenizer
    except Exception as error:  # PEFT checks little of what a config file says
        reason = " ".join(str(error).split())
        raise BackendError(f"the adapter {adapter} cannot be merged into {model}: {reason}") from error


def save_merged(merged: Any, tokenizer: PreTrainedTokenizerBase, model: str, target: Path) -> None:
    """Save a merged model and its tokenizer in a folder, in the base model's dtype.

    Args:
        merged: the model, in float32; it is converted in place.
        tokenizer: its tokenizer.
        model: the base model, hub name or folder.
        target: an existing folder.

    Raises:
        UserError: the disk has not enough space.
        BackendError: writing fails.
    """
    config: Any = AutoConfig.from_pretrained(**loading_arguments(model), trust_remote_code=False)
    merged.to(config.dtype or torch.float32)
    require_space(target, sum(each.nbytes for each in merged.parameters()), "the merged model")
    try:
        merged.save_pretrained(str(target))
        tokenizer.save_pretrained(str(target))
    except SafetensorError as error:  # its own for a disk that fails
        raise BackendError(f"the merged model cannot be written: {' '.join(str(error).split())}") from error
