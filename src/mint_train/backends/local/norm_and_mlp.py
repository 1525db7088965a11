"""RMSNorm and SwiGLU with fewer passes through memory, saving only their inputs for the backward.

In transformers each is a chain of operations, which all read and write main memory and save most of their
results. On a CPU a few rows at a time pass through the whole chain while they are in cache; on CUDA the norm
is one fused kernel. Results agree up to rounding. A module is replaced only if its own forward gives the same
output on random input, so no list of architectures is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import nn

CACHED_BYTES = 2**18
"""Bytes of one operand per block and core, so that a few operands fit a core's L2 cache."""

CHECKED_ROWS = 5
AGREEMENT = {
    ("cpu", torch.float32): 1e-5,
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
    if x.device.type == "cpu" and x.dtype is torch.float32:
        return cast(torch.Tensor, _RmsNorm.apply(x, weight, eps))
    return nn.functional.rms_norm(x, weight.shape, weight, eps)


def _gated_forward(module: Any, x: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, module.down_proj(_SwiGlu.apply(module.gate_proj(x), module.up_proj(x))))


def _blocks(rows: torch.Tensor) -> Iterator[slice]:
    """Yield blocks of rows that fit a CPU's cache; on other devices, all rows."""
    if rows.device.type != "cpu":
        yield slice(0, len(rows))
        return
    step = max(1, torch.get_num_threads() * CACHED_BYTES // (rows.element_size() * rows.shape[1]))
    for start in range(0, len(rows), step):
        yield slice(start, min(start + step, len(rows)))


class _RmsNorm(torch.autograd.Function):
    """``x / sqrt(mean(x ** 2) + eps) * weight`` over the last dimension, with a frozen weight."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(rows)
        inverse = rows.new_empty(len(rows), 1)
        for block in _blocks(rows):
            part, result, factor = rows[block], out[block], inverse[block]
            torch.mean(torch.mul(part, part, out=result), 1, keepdim=True, out=factor)
            factor.add_(eps).rsqrt_()
            torch.mul(part, factor, out=result).mul_(weight)
        ctx.save_for_backward(x, inverse, weight)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, x.shape[-1])
        grad_x = torch.empty_like(rows)
        for block in _blocks(rows):
            factor, result = inverse[block], grad_x[block]
            normed = rows[block] * factor
            torch.mul(grad_rows[block], weight, out=result)
            along = (result * normed).mean(1, keepdim=True)
            result.addcmul_(normed, along, value=-1).mul_(factor)
        return grad_x.view(x.shape), None, None


class _SwiGlu(torch.autograd.Function):
    """``silu(gate) * up``; the backward recomputes ``silu(gate)`` instead of saving it."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gates, ups = (states.reshape(-1, states.shape[-1]) for states in (gate, up))
        out = torch.empty_like(gates)
        for block in _blocks(gates):
            torch.mul(nn.functional.silu(gates[block]), ups[block], out=out[block])
        ctx.save_for_backward(gate, up)
        return out.view(gate.shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        gates, ups, grads = (states.reshape(-1, gate.shape[-1]) for states in (gate, up, grad))
        grad_gate, grad_up = torch.empty_like(gates), torch.empty_like(ups)
        for block in _blocks(gates):
            torch.mul(grads[block], nn.functional.silu(gates[block]), out=grad_up[block])
            inner = grads[block] * ups[block]
            torch.ops.aten.silu_backward(inner, gates[block], grad_input=grad_gate[block])
        return grad_gate.view(gate.shape), grad_up.view(up.shape)
