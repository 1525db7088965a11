"""RMSNorm and SwiGLU with fewer passes through memory, saving only their inputs for the backward.

In transformers each is a chain of operations, which all read and write main memory and save most of their
results. On a CPU a few rows at a time pass through the whole chain while they are in cache; on CUDA the norm
is one fused kernel. Results agree up to rounding. A module is replaced only if its own forward gives the same
output on random input, so no list of architectures is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from mint_train.backends.local.logprobs import precise
from mint_train.backends.local.recomputed import set_source
from mint_train.backends.local.swiglu import SwiGlu, as_rows, cached_blocks
from mint_train.backends.local.temporaries import empty_temporary

CHECKED_ROWS = 5
AGREEMENT = {
    ("cpu", torch.float32): 1e-5,
    ("cpu", torch.bfloat16): 2e-2,
    ("cpu", torch.float16): 2e-3,
    ("cuda", torch.float32): 1e-5,
    ("cuda", torch.bfloat16): 2e-2,
    ("cuda", torch.float16): 2e-3,
}
"""Where modules are replaced, and by how much outputs may differ, relative to the largest output."""

Forward = Callable[[torch.Tensor], torch.Tensor]


def lean_forwards(model: nn.Module) -> dict[nn.Module, Forward]:
    """Return a faster forward for every module of `model` that has one."""
    found: dict[nn.Module, Forward] = {}
    for module in model.modules():
        forward = _lean_forward(module)
        if forward is not None and _agree(module, forward):
            found[module] = forward
    return found


def _lean_forward(module: nn.Module) -> Forward | None:
    name = type(module).__name__
    if name.endswith("RMSNorm") and [n for n, _ in module.named_parameters()] == ["weight"]:
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        frozen = not cast(torch.Tensor, module.weight).requires_grad
        return partial(_norm_forward, module, eps) if frozen and isinstance(eps, float) else None
    if {child for child, _ in module.named_children()} == {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return partial(_gated_forward, module)
    return None


def _agree(module: nn.Module, forward: Forward) -> bool:
    """Return whether `forward` agrees with the module's own forward on random rows."""
    weight = getattr(module, "weight", None)
    if weight is None:
        weight = cast(torch.Tensor, cast(Any, module).gate_proj.weight)
    tolerance = AGREEMENT.get((weight.device.type, weight.dtype))
    if tolerance is None:
        return False
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, CHECKED_ROWS, weight.shape[-1], generator=generator).to(weight)
    with torch.no_grad():
        expected, found = module(rows), forward(rows)
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _norm_forward(module: nn.Module, eps: float, x: torch.Tensor) -> torch.Tensor:
    weight = cast(torch.Tensor, module.weight)
    if x.device.type == "cpu":
        return cast(torch.Tensor, _RmsNorm.apply(x, weight, eps))
    return nn.functional.rms_norm(x, weight.shape, weight, eps)


def _gated_forward(module: Any, x: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, module.down_proj(SwiGlu.apply(module.gate_proj(x), module.up_proj(x))))


class _RmsNorm(torch.autograd.Function):
    """``x / sqrt(mean(x ** 2) + eps) * weight`` over the last dimension, with a frozen weight.

    In 16 bits it is computed in float32, and rounded before it is multiplied by the weight, as transformers
    does it.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        rows, out = as_rows(x), empty_temporary(x, x.shape)
        results, inverse = as_rows(out), rows.new_empty(len(rows), 1, dtype=precise(x.dtype))
        for block in cached_blocks(rows):
            part, result, factor = rows[block], results[block], inverse[block]
            squares = (
                torch.mul(part, part, out=result) if part.dtype is factor.dtype else part.to(factor).square_()
            )
            torch.mean(squares, 1, keepdim=True, out=factor)
            factor.add_(eps).rsqrt_()
            torch.mul(part, factor, out=result).mul_(weight)
        ctx.save_for_backward(x, inverse, weight)
        if ctx.needs_input_grad[0]:
            set_source(out, _normed, x, inverse, weight)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        rows, grad_rows = as_rows(x), as_rows(grad)
        grad_x = torch.empty_like(rows)
        for block in cached_blocks(rows):
            factor, result = inverse[block], grad_x[block]
            normed = rows[block] * factor
            torch.mul(grad_rows[block], weight, out=result)
            along = (result * normed).mean(1, keepdim=True)
            torch.mul(result.to(factor).addcmul_(normed, along, value=-1), factor, out=result)
        return grad_x.view(x.shape), None, None


def _normed(x: torch.Tensor, inverse: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Compute an RMSNorm whose ``1 / sqrt(mean(x ** 2) + eps)``, ``[rows, 1]``, is known."""
    rows, out = as_rows(x), empty_temporary(x, x.shape)
    results = as_rows(out)
    for block in cached_blocks(rows):
        torch.mul(rows[block], inverse[block], out=results[block]).mul_(weight)
    return out
