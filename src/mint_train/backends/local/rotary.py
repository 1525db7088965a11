"""Rotary position embeddings with fewer passes through memory, and without temporaries.

transformers rotates queries and keys by five operations, four of which write a temporary of their size. They
leave holes among the tensors that the backward needs, and glibc cannot use a hole for an aligned block of the
same size. Here the result is written head by head, and is the same to the bit. The function of a modelling
module is replaced only if it gives this result on random input, so no list of architectures is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from mint_train.backends.local.recomputed import has_source, kept_for, set_source
from mint_train.backends.local.temporaries import empty_temporary

NAME = "apply_rotary_pos_emb"
"""What transformers calls the function in each modelling module."""

Rotate: TypeAlias = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def lean_rotations(model: nn.Module) -> dict[ModuleType, Rotate]:
    """Return a faster function for every modelling module of `model` whose rotation is the usual one."""
    found: dict[ModuleType, Rotate] = {}
    for name in dict.fromkeys(type(module).__module__ for module in model.modules()):
        rotate = getattr(sys.modules.get(name), NAME, None)
        if rotate is not None and _agrees(rotate):
            found[sys.modules[name]] = _lean(rotate)
    return found


@contextmanager
def replaced_rotations(rotations: Mapping[ModuleType, Rotate]) -> Iterator[None]:
    """Put functions in place of those of their modules, and restore these afterwards."""
    before = {module: getattr(module, NAME) for module in rotations}
    try:
        for module, rotate in rotations.items():
            setattr(module, NAME, rotate)
        yield
    finally:
        for module, rotate in before.items():
            setattr(module, NAME, rotate)


def _lean(original: Rotate) -> Rotate:
    def rotate(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *more: Any, **named: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if more or named or not (_suits(q, cos, sin) and _suits(k, cos, sin)):
            return original(q, k, cos, sin, *more, **named)
        rotated_q, rotated_k = (_Rotation.apply(states, cos, sin) for states in (q, k))
        return cast(torch.Tensor, rotated_q), cast(torch.Tensor, rotated_k)

    return rotate


def _suits(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    """Return whether all of ``[batch, heads, rows, dim]`` is rotated, on a CPU and in one dtype."""
    return (
        all(each.device.type == "cpu" and each.dtype is states.dtype for each in (states, cos, sin))
        and states.dim() == cos.dim() + 1 == sin.dim() + 1 == 4
        and states.shape[-1] == cos.shape[-1] == sin.shape[-1]
    )


def _agrees(rotate: Rotate) -> bool:
    """Return whether a function rotates random states as ``x * cos + rotate_half(x) * sin``."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 4, 3, 8), (1, 2, 3, 8), (1, 3, 8), (1, 3, 8))
    given = [torch.randn(shape, generator=generator) for shape in shapes]
    try:
        expected = rotate(*given)
        return all(torch.equal(*pair) for pair in zip(expected, _lean(rotate)(*given), strict=True))
    except Exception:  # it takes or returns something else
        return False


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Compute ``x * cos + (-b, a) * sin`` for the halves ``(a, b)`` of ``[batch, heads, rows, dim]``."""
    half = x.shape[-1] // 2
    out, product = empty_temporary(x, x.shape), x.new_empty(x.shape[2], half)
    for index, (heads, results) in enumerate(zip(x, out, strict=True)):
        cosine, sine = (angles.expand(len(x), -1, -1)[index] for angles in (cos, sin))
        for head, result in zip(heads, results, strict=True):
            torch.mul(head, cosine, out=result)
            result[:, :half] -= torch.mul(head[:, half:], sine[:, :half], out=product)
            result[:, half:] += torch.mul(head[:, :half], sine[:, half:], out=product)
    return out


class _Rotation(torch.autograd.Function):
    """``x * cos + rotate_half(x) * sin``, whose backward turns by the same angle the other way."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        out = _rotated(x, cos, sin)
        if ctx.needs_input_grad[0] and has_source(x):
            compute, kept = kept_for(x)
            set_source(out, lambda *given: _rotated(compute(*given[:-2]), *given[-2:]), *kept, cos, sin)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, sin.roll(sin.shape[-1] // 2, -1).neg()), None, None
