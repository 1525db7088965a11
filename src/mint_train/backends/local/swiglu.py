"""SwiGLU, ``silu(gate) * up``, with few passes through memory; only its inputs are saved for the backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import silu

from mint_train.backends.local.recomputed import set_source
from mint_train.backends.local.temporaries import empty_temporary

CACHED_BYTES = 2**18
"""Bytes of one operand per block and core, so that a few operands fit a core's L2 cache."""


def cached_blocks(rows: torch.Tensor) -> Iterator[slice]:
    """Yield blocks of rows that fit a CPU's cache; on other devices, all rows."""
    if rows.device.type != "cpu":
        yield slice(0, len(rows))
        return
    step = max(1, torch.get_num_threads() * CACHED_BYTES // (rows.element_size() * rows.shape[1]))
    for start in range(0, len(rows), step):
        yield slice(start, min(start + step, len(rows)))


def as_rows(states: torch.Tensor) -> torch.Tensor:
    """View ``[..., width]`` as ``[rows, width]``."""
    return states.reshape(-1, states.shape[-1])


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Compute ``silu(gate) * up``, without a graph, for operands of any shape."""
    gates, ups = as_rows(gate), as_rows(up)
    out = empty_temporary(gate, gate.shape)
    results = as_rows(out)
    for block in cached_blocks(gates):
        torch.mul(silu(gates[block]), ups[block], out=results[block])
    return out


def swiglu_gradients(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the gradients of `gate` and `up` from that of their SwiGLU."""
    gates, ups, grads = as_rows(gate), as_rows(up), as_rows(grad)
    grad_gate, grad_up = torch.empty_like(gates), torch.empty_like(ups)
    for block in cached_blocks(gates):
        torch.mul(grads[block], silu(gates[block]), out=grad_up[block])
        inner = grads[block] * ups[block]
        torch.ops.aten.silu_backward(inner, gates[block], grad_input=grad_gate[block])
    return grad_gate.view(gate.shape), grad_up.view(up.shape)


class SwiGlu(torch.autograd.Function):
    """``silu(gate) * up``; the backward recomputes ``silu(gate)`` instead of saving it."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Compute it, and save the operands."""
        ctx.save_for_backward(gate, up)
        out = swiglu(gate, up)
        if any(ctx.needs_input_grad):
            set_source(out, swiglu, gate, up)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the gradients of both operands."""
        return swiglu_gradients(grad, *ctx.saved_tensors)
