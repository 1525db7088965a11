"""Merge an adapter into its base model, so that transformers can load the result without PEFT."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers import AutoConfig

from mint_train.backends.local.load import load_base
from mint_train.errors import BackendError


def merge_adapter(model: str, adapter: Path, target: Path) -> None:
    """Merge an adapter into its base model, and save the model and its tokenizer in a folder.

    The weights are added in float32 and saved in the base model's dtype.

    Args:
        model: the base model, hub name or folder.
        adapter: a folder in PEFT's format.
        target: an existing folder.

    Raises:
        UserError: the base model cannot be loaded.
        BackendError: the adapter is broken or belongs to another model, or writing fails.
    """
    transformers.utils.logging.disable_progress_bar()
    base, tokenizer = load_base(model, "float32")
    try:
        with warnings.catch_warnings():
            # PEFT reads an attribute that transformers has renamed
            warnings.simplefilter("ignore", FutureWarning)
            adapted: Any = PeftModel.from_pretrained(base, str(adapter))
            merged = adapted.merge_and_unload(safe_merge=True)
        merged.to(AutoConfig.from_pretrained(model, trust_remote_code=False).dtype or torch.float32)
        merged.save_pretrained(str(target))
        tokenizer.save_pretrained(str(target))
    except Exception as error:  # PEFT checks little of what a config file says
        reason = " ".join(str(error).split())
        raise BackendError(f"the adapter {adapter} cannot be merged into {model}: {reason}") from error
