"""A forward for LoRA layers with fewer temporaries, which saves only what the backward needs.

PEFT's forward allocates three tensors of the layer's output size: the adapter's output, its scaled copy
and the sum. Here the adapter's product is added in place. The input is needed for the adapter's gradient; if
it can be computed again from what is saved anyway, it is not saved. Results agree up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import nn

from mint_train.backends.local.quantized import QuantizedLinear
from mint_train.backends.local.recomputed import kept_for
from mint_train.backends.local.swiglu import as_rows
from mint_train.backends.local.temporaries import empty_output


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
    layers = [layer for layer in model.modules() if isinstance(layer, PeftLinear)]
    with replaced_forwards({layer: _forward_of(layer) for layer in layers}):
        yield


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., torch.Tensor]]) -> Iterator[None]:
    """Give modules other forwards, and restore them afterwards."""
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)


def _forward_of(layer: PeftLinear) -> Callable[..., torch.Tensor]:
    """Return the fastest forward of a layer as it is now, which takes time to find out in every call."""
    if layer.disable_adapters and not layer.merged:
        return cast(Callable[..., torch.Tensor], layer.base_layer)
    lora = plain_lora(layer)
    return partial(type(layer).forward, layer) if lora is None else partial(_lora_forward, layer, lora)


def _lora_forward(
    layer: PeftLinear, lora: LoraWeights, x: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    if args or kwargs:
        return type(layer).forward(layer, x, *args, **kwargs)
    return cast(torch.Tensor, _LoraLinear.apply(x, layer.base_layer, *lora))


class _LoraLinear(torch.autograd.Function):
    """``x @ (weight + scale * up @ down).T + bias`` with a frozen weight and bias.

    The layer is kept for the backward, not its weight: a quantised one computes that when it is asked.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        base: nn.Linear,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        rows = as_rows(x)
        # The adapter is float32 even if the base is bfloat16; products are computed in the base's dtype.
        down_here, up_here = down.to(x.dtype), up.to(x.dtype)
        inner = rows @ down_here.T
        weight = base.weight
        out = empty_output(rows, (len(rows), len(weight)))
        if base.bias is None:
            torch.mm(rows, weight.T, out=out)
        else:
            torch.addmm(base.bias, rows, weight.T, out=out)
        out.addmm_(inner, up_here.T, alpha=scale)
        ctx.input_of, kept = kept_for(x)
        ctx.save_for_backward(inner, down, up, *kept)
        ctx.base, ctx.scale = base, scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inner, down, up, *kept = ctx.saved_tensors
        grad_rows = as_rows(grad)
        grad_inner = (grad_rows @ up.to(grad.dtype)).mul_(ctx.scale)
        grad_down = (grad_inner.T @ as_rows(ctx.input_of(*kept))).to(down.dtype)
        grad_up = (grad_rows.T @ inner).mul_(ctx.scale).to(up.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_rows @ ctx.base.weight).addmm_(grad_inner, down.to(grad.dtype))
            grad_x = grad_x.view(*grad.shape[:-1], -1)
        return grad_x, None, grad_down, grad_up, None
