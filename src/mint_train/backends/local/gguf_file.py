"""A model in GGUF, the format of llama.cpp and Ollama: its dimensions, its tensors in float16, its tokenizer.

llama.cpp's own `convert_hf_to_gguf.py` says what a file of each architecture holds.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import torch
from gguf import GGUFReader, GGUFWriter
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from mint_train.backends.hub_model import loading_arguments, split_revision
from mint_train.backends.local.gguf_vocabulary import Vocabulary, add_vocabulary
from mint_train.backends.local.load import computing_device, computing_dtype, load_tokenizer
from mint_train.errors import BackendError, OptionError, UserError
from mint_train.run_folder.files import require_space

ROPE_TYPES: Mapping[str, tuple[str, ...]] = {
    "llama": ("default", "llama3"),
    "qwen2": ("default",),
    "qwen3": ("default",),
}
"""The architectures that are written, named alike by llama.cpp and transformers, and their kinds of rope."""
PLAIN: Mapping[str, object] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
}
"""What llama.cpp takes for granted in all of them."""
ROTATED = ("self_attn.q_proj", "self_attn.k_proj")


def check_gguf(model: str) -> None:
    """Refuse a base model that cannot be written as GGUF, before anything is loaded or written.

    Args:
        model: hub name or folder.

    Raises:
        UserError: the model or its tokenizer cannot be loaded, or is not mapped.
    """
    tokenizer = load_tokenizer(model)
    try:
        config = AutoConfig.from_pretrained(**loading_arguments(model), trust_remote_code=False)
        refuse_unmapped(config)
        Vocabulary.of(tokenizer, config.vocab_size)
    except UserError as error:
        name = Path(split_revision(model)[0]).name
        raise OptionError(
            f"--to gguf cannot write {name}: {error}; export it by --to merged, and convert "
            "that folder with llama.cpp's convert_hf_to_gguf.py"
        ) from error


def refuse_unmapped(config: Any) -> None:
    """Refuse an architecture that is not written, or has what llama.cpp does not compute.

    Raises:
        UserError: naming it.
    """
    kinds = ROPE_TYPES.get(config.model_type)
    if kinds is None:
        raise UserError(f"the architecture {config.model_type} is none of {', '.join(ROPE_TYPES)}")
    for field, plain in PLAIN.items():
        value = getattr(config, field, plain)
        if value != plain:
            raise UserError(f"{field} is {value}, and llama.cpp takes {plain}")
    kind = config.rope_parameters.get("rope_type")
    if kind not in kinds:
        raise UserError(f"rope_type is {kind}, which is not written for {config.model_type}")


def write_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, name: str) -> None:
    """Write a model and its tokenizer as one file, matrices in float16.

    Args:
        model: the model, in float32.
        tokenizer: its tokenizer.
        path: the file; its folder exists.
        name: what the file calls the model.

    Raises:
        UserError: the model is not mapped, or the disk has not enough space.
        BackendError: a number is too large for float16.
    """
    writer = GGUFWriter(path, model.config.model_type)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_dimensions(writer, model.config)
    add_vocabulary(writer, tokenizer, Vocabulary.of(tokenizer, model.config.vocab_size))
    size = 0
    for tensor_name, tensor in named_tensors(model):
        dtype = dtype_of(tensor)
        bytes_of = tensor.numel() * dtype.itemsize
        writer.add_tensor_info(tensor_name, tensor.shape, dtype, bytes_of)
        size += bytes_of
    require_space(path.parent, size, "the GGUF file")
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor_name, tensor in named_tensors(model):
            writer.write_tensor_data(as_array(tensor_name, tensor))
    finally:
        writer.close()


def add_dimensions(writer: GGUFWriter, config: Any) -> None:
    """Add what the architecture needs to know."""
    head = head_dimension(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def head_dimension(config: Any) -> int:
    """Return the numbers of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def named_tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a model's tensors by the names and in the layout of llama.cpp.

    Raises:
        BackendError: one has no name there.
    """
    config: Any = model.config
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    if config.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", rope_factors(model)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # llama.cpp takes the embedding
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise BackendError(f"{name} has no name in a GGUF file of {config.model_type}")
        if config.model_type == "llama" and name.rpartition(".")[0].endswith(ROTATED):
            tensor = interleave_halves(tensor, head_dimension(config))
        yield found, tensor


def interleave_halves(weight: torch.Tensor, head: int) -> torch.Tensor:
    """Reorder each head's rows: rope turns row i with row i + head / 2 here, and neighbours in llama.cpp.

    Args:
        weight: `[heads * head, ...]`.
        head: rows of a head.
    """
    halves = weight.reshape(-1, 2, head // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def rope_factors(model: PreTrainedModel) -> torch.Tensor:
    """Return by what a model divides the frequencies that plain rope has, float32 `[head / 2]`."""
    inner: Any = model.base_model
    own: torch.Tensor = inner.rotary_emb.inv_freq.double()
    steps = torch.arange(0, 2 * len(own), 2, dtype=torch.float64, device=own.device) / (2 * len(own))
    plain = torch.pow(inner.config.rope_parameters["rope_theta"], -steps)
    return (plain / own).float()


def dtype_of(tensor: torch.Tensor) -> np.dtype[Any]:
    """Return the dtype of a tensor in the file: llama.cpp adds and multiplies vectors in float32."""
    return np.dtype(np.float16 if tensor.ndim > 1 else np.float32)


def as_array(name: str, tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor as the file holds it.

    Raises:
        BackendError: a number is too large.
    """
    with np.errstate(over="ignore"):
        array = tensor.detach().cpu().float().numpy().astype(dtype_of(tensor))
    if not np.isfinite(array).all():
        raise BackendError(
            f"{name} holds numbers that float16 cannot, so the model cannot be written as GGUF"
        )
    return array


def load_gguf(path: Path, own: Any) -> PreTrainedModel:
    """Load a model from a GGUF file by transformers' own mapping, as a base model is loaded.

    Args:
        path: the file.
        own: the base model's configuration, for the kind of rope, which transformers does not read.

    Raises:
        BackendError: it cannot be read.
    """
    try:
        # it draws a bar that cannot be switched off
        with redirect_stderr(io.StringIO()):
            config: Any = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
            # it reads neither the kind of rope nor, for each architecture, the size of a head
            config.rope_parameters = own.rope_parameters | {
                "rope_theta": config.rope_parameters["rope_theta"]
            }
            config.head_dim = head_length(path, config.model_type)
            model: Any = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, config=config, dtype=computing_dtype("auto")
            )
    except Exception as error:  # transformers raises errors of many kinds
        raise BackendError(f"{path} cannot be read back: {' '.join(str(error).split())}") from error
    model.to(computing_device())
    return cast("PreTrainedModel", model.eval())


def head_length(path: Path, architecture: str) -> int:
    """Read the numbers of an attention head from a GGUF file."""
    field = GGUFReader(path).get_field(f"{architecture}.attention.key_length")
    if field is None:
        raise ValueError("it does not say how long an attention head is")
    return int(field.contents())
