"""Frozen linear layers whose weights are kept in 8 or 4 bits, by bitsandbytes.

A weight is dequantised where it is used, in the forward and again in the backward, and nothing but its
quantised form is kept in between. Activations, adapters, embeddings and the output layer stay as they are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from mint_train.backends.local.memory import M_MMAP_THRESHOLD
from mint_train.errors import OptionError
from mint_train.run_folder.description import QuantizationDescription
from mint_train.settings.model import Quantization

NF4_BLOCK = 64
"""Weights that share a scale, as in QLoRA (arXiv 2305.14314)."""
INT8_LARGEST = 127
LARGE_BLOCK = 2**21
"""Bytes."""

Dequantized: TypeAlias = Callable[[], torch.Tensor]


class QuantizedLinear(nn.Linear):
    """A frozen linear layer that keeps its weight quantised.

    Args:
        layer: the layer whose weight and bias it takes.
        kind: how the weight is quantised: int8 with a scale for each row (arXiv 2208.07339), or NF4.
        device: where it computes.
        dtype: what it computes in, and what its weight is rounded to before.
    """

    def __init__(
        self, layer: nn.Linear, kind: Quantization, device: torch.device, dtype: torch.dtype
    ) -> None:
        nn.Module.__init__(self)  # that of `nn.Linear` would make a whole weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self.kind = kind
        self.original: torch.Tensor | None = None
        """The weight as it was, while the model computes without quantisation."""
        self.dtype, self.device = dtype, device
        self._dequantized = QUANTIZERS[kind](layer.weight.detach().to(device, dtype))

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The weight ``[out, in]``, computed at each call."""
        if self.original is not None:
            return self.original.to(self.device, self.dtype)
        return self._dequantized()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x @ weight.T + bias``."""
        return cast(torch.Tensor, _FrozenLinear.apply(x, self))


class _FrozenLinear(torch.autograd.Function):
    """The product with a frozen layer's weight, of which nothing is saved."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: QuantizedLinear) -> torch.Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad @ ctx.layer.weight, None


def _int8(weight: torch.Tensor) -> Dequantized:
    from bitsandbytes import functional

    dtype = weight.dtype
    packed, largest, _ = functional.int8_vectorwise_quant(weight.half())
    scale = (largest / INT8_LARGEST).unsqueeze(1)
    return lambda: (packed * scale).to(dtype)


def _nf4(weight: torch.Tensor) -> Dequantized:
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
    return lambda: cast(torch.Tensor, functional.dequantize_4bit(packed, state))


QUANTIZERS: dict[Quantization, Callable[[torch.Tensor], Dequantized]] = {"int8": _int8, "nf4": _nf4}


def quantize_layers(
    model: PreTrainedModel, kind: Quantization, device: torch.device, dtype: torch.dtype
) -> None:
    """Quantise every linear layer of a model without adapter except the output layer, one after the other.

    Raises:
        OptionError: the model has no such layer.
    """
    output = model.get_output_embeddings()
    paths = [
        path for path, layer in model.named_modules() if type(layer) is nn.Linear and layer is not output
    ]
    if not paths:
        raise OptionError(
            f"--quantize {kind}: {type(model).__name__} has no linear layers that can be quantised; leave "
            "the option out"
        )
    unmap_freed_blocks()
    for path in paths:
        layer = cast(nn.Linear, model.get_submodule(path))
        model.set_submodule(path, QuantizedLinear(layer, kind, device, dtype))


def unmap_freed_blocks() -> None:
    """Let a C library such as glibc give large blocks back to the system once they are freed.

    So the weights that are quantised leave nothing behind. An engine has it keep its memory again, as a step
    that does takes less time and no more memory.
    """
    with suppress(OSError, AttributeError, TypeError):  # where it does not have the function
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    """Yield path and layer of each quantised layer; the path is that in the model without adapter."""
    for path, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            yield path.removesuffix(".base_layer"), layer


def quantization_of(model: nn.Module) -> Quantization | None:
    """Return how a model's frozen weights are quantised; None if they are not."""
    return next((layer.kind for _, layer in quantized_layers(model)), None)


@contextmanager
def unquantized(adapted: PeftModel, original: PreTrainedModel) -> Iterator[None]:
    """Let a quantised model compute with the weights that it was quantised from.

    Args:
        adapted: the quantised model.
        original: its base model, as it lies in its files.
    """
    layers = dict(quantized_layers(adapted.get_base_model()))
    try:
        for path, layer in layers.items():
            layer.original = cast(torch.Tensor, original.get_submodule(path).weight).detach()
        yield
    finally:
        for layer in layers.values():
            layer.original = None


def difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> QuantizationDescription:
    """Compare the logprobs of texts, ``[trained tokens]`` each, with those without quantisation."""
    apart = [(one - other).abs() for one, other in zip(found, expected, strict=True)]
    tokens = torch.cat(apart)
    return QuantizationDescription(
        texts=len(apart), tokens=len(tokens), mean=float(tokens.mean()), largest=float(tokens.max())
    )
