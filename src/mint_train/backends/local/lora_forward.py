"""A forward for LoRA layers with fewer temporaries, which saves only what the backward needs.

PEFT's forward allocates three tensors of the layer's output size: the adapter's output, its scaled copy
and the sum. Here the adapter's product is added in place. The input is saved for the adapter's gradient; if
it is a SwiGLU, whose operands are saved anyway, the backward computes it again. Results agree up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import nn

from mint_train.backends.local.quantized import QuantizedLinear
from mint_train.backends.local.swiglu import as_rows, swiglu, swiglu_gradients


class LoraWeights(NamedTuple):
    """A layer's LoRA: ``down`` ``[rank, in]``, ``up`` ``[out, rank]`` and the factor of its output."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float


def plain_lora(module: nn.Module) -> LoraWeights | None:
    """Return the adapter of a PEFT layer, or None unless it is plain LoRA over a frozen linear layer.

    Plain means: one active adapter, not merged, no active dropout, no bias of its own, no variant (DoRA).
    """
    if not isinstance(module, PeftLinear) or not _is_frozen(module.base_layer):
        return None
    active = [name for name in module.active_adapters if name in module.lora_A]
    if module.merged or len(active) != 1 or active[0] in module.lora_variant:
        return None
    (name,) = active
    down, up, dropout = module.lora_A[name], module.lora_B[name], module.lora_dropout[name]
    dropping = isinstance(dropout, nn.Dropout) and dropout.p > 0 and dropout.training
    if dropping or up.bias is not None:
        return None
    return LoraWeights(
        cast(torch.Tensor, down.weight), cast(torch.Tensor, up.weight), float(module.scaling[name])
    )


def _is_frozen(layer: nn.Module) -> bool:
    if isinstance(layer, QuantizedLinear):
        return True
    return type(layer) is nn.Linear and not layer.weight.requires_grad


@contextmanager
def fused_lora(model: nn.Module) -> Iterator[None]:
    """Replace the forward of every plain LoRA layer of `model`, and restore it afterwards.

    Inside, adapters must not be switched on or off.
    """
    forwards = {layer: _forward_of(layer) for layer in model.modules() if isinstance(layer, PeftLinear)}
    try:
        for layer, forward in forwards.items():
            layer.__dict__["forward"] = forward
        yield
    finally:
        for layer in forwards:
            layer.__dict__.pop("forward", None)


def fused_forward(layer: nn.Module) -> FusedLora | None:
    """Return the replaced forward of a plain LoRA layer, inside `fused_lora`."""
    forward = layer.__dict__.get("forward")
    return forward if isinstance(forward, FusedLora) else None


def _forward_of(layer: PeftLinear) -> Callable[..., torch.Tensor]:
    """Return the fastest forward of a layer as it is now, which takes time to find out in every call."""
    if layer.disable_adapters and not layer.merged:
        return cast(Callable[..., torch.Tensor], layer.base_layer)
    lora = plain_lora(layer)
    return partial(type(layer).forward, layer) if lora is None else FusedLora(layer, lora)


class FusedLora:
    """``x @ (weight + scale * up @ down).T + bias`` of a layer whose own weight and bias are frozen."""

    def __init__(self, layer: PeftLinear, lora: LoraWeights) -> None:
        self.layer, self.lora = layer, lora

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute it for ``[..., in]``, as PEFT does."""
        if args or kwargs:
            return type(self.layer).forward(self.layer, x, *args, **kwargs)
        return self._apply(x)

    def of_swiglu(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Compute it for ``silu(gate) * up``, which is not saved."""
        return self._apply(gate, up)

    def _apply(self, *inputs: torch.Tensor) -> torch.Tensor:
        down, up, scale = self.lora
        return cast(torch.Tensor, _LoraLinear.apply(self.layer.base_layer, scale, down, up, *inputs))


class _LoraLinear(torch.autograd.Function):
    """The product of a LoRA layer with one input, or with the SwiGLU of two.

    The layer is kept for the backward, not its weight: a quantised one computes that when it is asked.
    """

    @staticmethod
    def forward(
        ctx: Any,
        base: nn.Linear,
        scale: float,
        down: torch.Tensor,
        up: torch.Tensor,
        *inputs: torch.Tensor,
    ) -> torch.Tensor:
        x = _input_of(inputs)
        rows = as_rows(x)
        # The adapter is float32 even if the base is bfloat16; products are computed in the base's dtype.
        down_here, up_here = down.to(x.dtype), up.to(x.dtype)
        inner = rows @ down_here.T
        out = rows @ base.weight.T if base.bias is None else torch.addmm(base.bias, rows, base.weight.T)
        out.addmm_(inner, up_here.T, alpha=scale)
        ctx.save_for_backward(inner, down, up, *inputs)
        ctx.base, ctx.scale = base, scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inner, down, up, *inputs = ctx.saved_tensors
        x = _input_of(inputs)
        grad_rows = as_rows(grad)
        grad_inner = (grad_rows @ up.to(x.dtype)).mul_(ctx.scale)
        grad_down = (grad_inner.T @ as_rows(x)).to(down.dtype)
        grad_up = (grad_rows.T @ inner).mul_(ctx.scale).to(up.dtype)
        if not any(ctx.needs_input_grad[4:]):
            return None, None, grad_down, grad_up, *(None for _ in inputs)
        shape = x.shape
        del x
        grad_x = (grad_rows @ ctx.base.weight).addmm_(grad_inner, down.to(grad.dtype)).view(shape)
        grads = (grad_x,) if len(inputs) == 1 else swiglu_gradients(grad_x, *inputs)
        return None, None, grad_down, grad_up, *grads


def _input_of(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the one input, or the SwiGLU of two."""
    return inputs[0] if len(inputs) == 1 else swiglu(*inputs)
