"""Open the embedded backend: load a base model by hub name or folder, or make the starter model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mint_train.backends.hub_model import loading_arguments
from mint_train.backends.local.adapter import LoraShape, add_adapter
from mint_train.backends.local.client import LocalTrainingClient, model_errors
from mint_train.backends.local.engine import Engine
from mint_train.backends.local.quantized import quantize_layers
from mint_train.backends.local.starter_model import save_starter_model
from mint_train.backends.peft_folder import ADAPTER_CONFIG, PeftConfig
from mint_train.errors import BackendError, UserError
from mint_train.run_folder.files import files_for_all
from mint_train.run_folder.replacing import holds_run
from mint_train.settings.model import Quantization

LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
"""Errors that transformers raises for missing, broken and incompatible files."""

OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")
"""Weights in other formats; some of them are pickles, which can run code when they are loaded."""

Dtype = Literal["auto", "float32", "bfloat16"]


def open_local_client(
    model: str | None,
    lora: LoraShape,
    seed: int,
    folder: Path,
    *,
    dtype: Dtype = "auto",
    quantize: Quantization | None = None,
    max_tokens_in_flight: int | None = None,
    gradient_checkpointing: bool = False,
) -> LocalTrainingClient:
    """Load or make the base model, put a fresh LoRA adapter on it, and return a training client.

    Args:
        model: hub name or folder; None makes the starter model in `folder/base_model`.
        lora: the adapter's rank, alpha and targets.
        seed: seed of the adapter's initial weights.
        folder: where the client saves states and the adapter.
        dtype: dtype of the frozen weights; auto means bfloat16 on CUDA and float32 elsewhere.
        quantize: how the frozen linear layers are quantised; None leaves them.
        max_tokens_in_flight: most tokens whose activations are kept at once; None: as memory allows.
        gradient_checkpointing: recompute activations in the backward.

    Raises:
        UserError: the model cannot be loaded, or lacks a layer that is to get an adapter.
        BackendError: the model's computation fails.
    """
    transformers.utils.logging.disable_progress_bar()
    if model is None:
        model = str(folder / "base_model")
        write_starter_model(Path(model))
    base, tokenizer = load_base(model, dtype, quantize)
    adapted = add_adapter(base, lora, seed)
    with model_errors():
        engine = Engine(
            adapted, max_tokens_in_flight=max_tokens_in_flight, gradient_checkpointing=gradient_checkpointing
        )
    return LocalTrainingClient(adapted, tokenizer, engine, folder)


def open_client_of(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lora: LoraShape, folder: Path
) -> LocalTrainingClient:
    """Put a fresh adapter on a model that is loaded already, and return a client that computes with it.

    Raises:
        UserError: the model lacks a layer that is to get an adapter.
        BackendError: the model's computation fails.
    """
    adapted = add_adapter(base, lora, seed=0)
    with model_errors():
        engine = Engine(adapted)
    return LocalTrainingClient(adapted, tokenizer, engine, folder)


def write_starter_model(folder: Path) -> None:
    """Write the starter model, whole or with the reason why not.

    Raises:
        BackendError: the disk refuses.
    """
    try:
        save_starter_model(folder)
        files_for_all(folder)
    except Exception as error:  # the tokenizers library raises no narrower one
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise BackendError(f"the base model cannot be written to {folder}: {reason}") from error


def load_base(
    name: str, dtype: Dtype, quantize: Quantization | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer from safetensors, without running the model's own code.

    Raises:
        UserError: one of them cannot be loaded; the message says which and why.
        OptionError: the model has no layers that can be quantised.
    """
    tokenizer = load_tokenizer(name)
    return load_model(name, computing_dtype(dtype), quantize), tokenizer


def load_model(name: str, dtype: torch.dtype, quantize: Quantization | None) -> PreTrainedModel:
    """Load a causal language model onto the device that computes.

    Raises:
        UserError: it cannot be loaded.
        OptionError: it has no layers that can be quantised.
    """
    device = torch.device(computing_device())
    if quantize is None:
        base: Any = load_weights(name, dtype)
    else:
        # in the dtype of their files, weights are pages of these files and take no memory of their own
        base = load_weights(name, "auto" if dtype is torch.float32 else dtype)
        quantize_layers(base, quantize, device, dtype)
        for parameter in base.parameters():
            parameter.data = parameter.data.to(dtype)
    base.to(device)
    base.eval()
    return cast("PreTrainedModel", base)


def load_weights(name: str, dtype: torch.dtype | Literal["auto"]) -> PreTrainedModel:
    """Load a causal language model in a dtype, or in that of its files.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        base: Any = AutoModelForCausalLM.from_pretrained(
            **loading_arguments(name), dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except LOADING_ERRORS as error:
        raise cannot_load(name, "model", error) from error
    base.name_or_path = name  # transformers leaves the revision out
    return cast("PreTrainedModel", base)


def computing_device() -> str:
    """Return the device that models are loaded to."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def computing_dtype(dtype: Dtype) -> torch.dtype:
    """Return the dtype of frozen weights: auto means bfloat16 on CUDA and float32 elsewhere."""
    half = dtype == "bfloat16" or (dtype == "auto" and computing_device() == "cuda")
    return torch.bfloat16 if half else torch.float32


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Raises:
        UserError: it cannot be loaded, or has no vocabulary or end-of-sequence token.
    """
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise UserError(f"--model {name}: this folder does not exist")
    refuse_other_folder(name)
    # Otherwise it logs every attempt to reach the hub.
    hub_logging.set_verbosity_error()
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(**loading_arguments(name), trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise cannot_load(name, "tokenizer", error) from error
    # If files are missing, some tokenizer classes load with an empty vocabulary.
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise UserError(f"--model {name}: the tokenizer has no vocabulary; its files are missing")
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"--model {name}: its tokenizer has no end-of-sequence token, but every completion needs one"
        )
    return cast("PreTrainedTokenizerBase", tokenizer)


def refuse_other_folder(name: str) -> None:
    """Refuse a folder that holds no base model's weights that can be loaded, and say what it holds.

    Raises:
        UserError: it is a run, an adapter, or a model without safetensors.
    """
    folder = Path(name)
    if (folder / ADAPTER_CONFIG).is_file():
        base = PeftConfig.read(folder).find_base(folder) or "its base model"
        raise UserError(
            f"--model {name}: it is an adapter of {base}; to begin with it, give --from {name} --model {base}"
        )
    if holds_run(folder):
        raise UserError(f"--model {name}: it is a run; to begin with what it trained, give --from {name}")
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    others = sorted(path.name for pattern in OTHER_WEIGHTS for path in folder.glob(pattern))
    if others:
        raise UserError(
            f"--model {name}: it has no safetensors, and {others[0]} is not loaded; save the model again "
            "with transformers' save_pretrained, which writes safetensors"
        )


def cannot_load(name: str, part: str, error: Exception) -> UserError:
    """Make the error for a model or tokenizer that cannot be loaded."""
    reason = " ".join(str(error).split())
    return UserError(f"--model {name}: the {part} cannot be loaded as a folder or from the hub: {reason}")
