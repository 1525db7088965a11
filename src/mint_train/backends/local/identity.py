"""What decides the logprobs of a base model on this machine, so that runs can share them."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import peft
import torch
from transformers import PreTrainedModel

from mint_train.backends.hub_model import commit_of
from mint_train.backends.local.quantized import quantization_of

FILES = ("*.safetensors", "config.json")


def base_identity(adapted: peft.PeftModel) -> Mapping[str, Any] | None:
    """Return what decides the logprobs of an adapter's base model, to the bit: weights, device, libraries.

    A fresh adapter changes no bit of them, whatever its seed, rank and targets.

    Returns:
        Values as JSON has them; None for a model that is neither in a folder nor at a commit of the hub.
    """
    model = cast("PreTrainedModel", adapted.get_base_model())
    name = str(model.name_or_path)
    weights = folder_digest(Path(name)) if Path(name).is_dir() else commit_of(name)
    if weights is None:
        return None
    kind = quantization_of(model)
    on_cuda = model.device.type == "cuda"
    return {
        "weights": weights,
        "dtype": str(model.dtype),
        "device": torch.cuda.get_device_name(model.device) if on_cuda else platform.machine(),
        "processor": None if on_cuda else torch.backends.cpu.get_cpu_capability(),
        **({} if kind is None else {"quantized": [kind, version("bitsandbytes")]}),
        "threads": torch.get_num_threads(),
        "versions": [torch.__version__, peft.__version__],
    }


def folder_digest(folder: Path) -> str | None:
    """Return a digest of a model's weights and configuration; None where it has none."""
    files = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    found = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            found.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest() if files else None
