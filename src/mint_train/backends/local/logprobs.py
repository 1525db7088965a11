"""Logprobs of given tokens from hidden states, without ever holding ``[rows, vocabulary]``.

The vocabulary is projected for a chunk of rows at a time, in one buffer. A target's logprob is one
number, so its derivative by the hidden state is one vector, known while the chunk's probabilities
are in the buffer: it is kept, and the backward only scales it. Where the projection itself carries
an adapter the backward recomputes each chunk instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch

CHUNK_BYTES = 64 * 2**20
"""Size of the logits buffer: large enough for matrix products at full rate, small beside a model."""

CACHED_BYTES = 2**20
"""On a CPU the exponentials of a chunk are taken for so many bytes at once, while they lie in cache."""

ROW_PADDING = 16
"""Extra columns of the buffer: rows a power of two apart would fall on the same cache lines."""


@dataclass(frozen=True)
class Head:
    """A vocabulary projection ``logits = cap(scale * (hidden @ (weight + up @ down).T + bias))``.

    Attributes:
        weight: ``[vocabulary, hidden]``, frozen.
        bias: ``[vocabulary]`` or None, frozen.
        down, up: a LoRA of the projection, ``[rank, hidden]`` and ``[vocabulary, rank]``, or None.
        lora_scale: factor of ``up @ down``.
        scale: factor of the logits.
        softcap: logits become ``softcap * tanh(logits / softcap)``, or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    lora_scale: float = 1.0
    scale: float = 1.0
    softcap: float | None = None


def target_logprobs(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
    """Logprob of each row's target.

    Args:
        hidden: ``[rows, hidden]``, any floating dtype.
        targets: int64 ``[rows]``.
        head: the vocabulary projection.

    Returns:
        float32 ``[rows]``, differentiable by `hidden` and the head's LoRA.
    """
    applied = _TargetLogprobs.apply(hidden, head.down, head.up, targets, head)
    return cast(torch.Tensor, applied)


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        down: torch.Tensor | None,
        up: torch.Tensor | None,
        targets: torch.Tensor,
        head: Head,
    ) -> torch.Tensor:
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] and down is None else None
        logprobs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        for rows, buffer in _chunks(hidden, head):
            logits = _logits(hidden[rows], head, buffer)
            sums = _exponentials(logits.values, targets[rows], logprobs[rows])
            if slope is not None:
                weights = _slope_weights(logits, sums, targets[rows], head)
                torch.mm(weights.to(hidden.dtype), head.weight, out=slope[rows])
                slope[rows] /= sums
        ctx.head = head
        if slope is not None:
            ctx.save_for_backward(slope)
        else:
            ctx.save_for_backward(hidden, down, up, targets)
        return logprobs

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.head.down is None:
            (slope,) = ctx.saved_tensors
            return slope * -grad.unsqueeze(1).to(slope.dtype), None, None, None, None
        hidden, down, up, targets = ctx.saved_tensors
        grad_hidden, grad_down, grad_up = _recompute(hidden, down, up, targets, ctx.head, grad)
        return grad_hidden, grad_down, grad_up, None, None


class _Logits(NamedTuple):
    """A chunk's logits, float32 ``[chunk, vocabulary]``, and the softcap's derivative, or None."""

    values: torch.Tensor
    cap_slope: torch.Tensor | None


def _chunks(hidden: torch.Tensor, head: Head) -> Iterator[tuple[slice, torch.Tensor]]:
    """Slices of the rows, each with its part of one buffer ``[chunk, vocabulary]``."""
    vocabulary = head.weight.shape[0]
    most = max(1, CHUNK_BYTES // (4 * vocabulary))
    # Chunks of equal size: a small last one would run at a lower rate.
    size = -(-len(hidden) // -(-len(hidden) // most)) if len(hidden) else 1
    buffer = torch.empty(size, vocabulary + ROW_PADDING, dtype=hidden.dtype, device=hidden.device)
    for start in range(0, len(hidden), size):
        stop = min(start + size, len(hidden))
        yield slice(start, stop), buffer[: stop - start, :vocabulary]


def _logits(hidden: torch.Tensor, head: Head, buffer: torch.Tensor) -> _Logits:
    torch.mm(hidden, head.weight.T, out=buffer)
    if head.down is not None and head.up is not None:
        buffer.addmm_(hidden @ head.down.T, head.up.T, alpha=head.lora_scale)
    if head.bias is not None:
        buffer += head.bias
    logits = buffer.float()
    if head.scale != 1.0:
        logits *= head.scale
    if head.softcap is None:
        return _Logits(logits, None)
    squashed = logits.div_(head.softcap).tanh_()
    return _Logits(squashed * head.softcap, 1 - squashed * squashed)


def _exponentials(logits: torch.Tensor, targets: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    """Fill `logprobs`, put ``exp(logits - top)`` in the place of `logits`, return its sums ``[chunk, 1]``."""
    count, vocabulary = logits.shape
    sums = torch.empty(count, 1, dtype=torch.float32, device=logits.device)
    step = max(1, CACHED_BYTES // (4 * vocabulary)) if logits.device.type == "cpu" else max(1, count)
    for start in range(0, count, step):
        rows = slice(start, start + step)
        part, total = logits[rows], sums[rows]
        top = part.amax(1, keepdim=True)
        above_target = part.gather(1, targets[rows].unsqueeze(1)).sub_(top)
        torch.sum(part.sub_(top).exp_(), 1, keepdim=True, out=total)
        logprobs[rows] = (above_target - total.log()).squeeze(1)
    return sums


def _slope_weights(logits: _Logits, sums: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
    """``(softmax - target) * sums``, in place of the exponentials, times what cap and scale add.

    This over `sums` is minus the derivative of each target's logprob by the projection's output;
    dividing is left for the much smaller product with the weights.
    """
    weights = logits.values.scatter_add_(1, targets.unsqueeze(1), -sums)
    if logits.cap_slope is not None:
        weights *= logits.cap_slope
    return weights.mul_(head.scale) if head.scale != 1.0 else weights


def _recompute(
    hidden: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    targets: torch.Tensor,
    head: Head,
    grad: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients by hidden states and both LoRA matrices, one chunk of logits at a time."""
    grad_hidden = torch.empty_like(hidden)
    grad_down, grad_up = torch.zeros_like(down), torch.zeros_like(up)
    unused = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    for rows, buffer in _chunks(hidden, head):
        logits = _logits(hidden[rows], head, buffer)
        sums = _exponentials(logits.values, targets[rows], unused[rows])
        weights = _slope_weights(logits, sums, targets[rows], head)
        weights = weights.mul_(-grad[rows].unsqueeze(1) / sums).to(hidden.dtype)
        torch.mm(weights, head.weight, out=grad_hidden[rows])
        inner = weights @ up * head.lora_scale
        grad_hidden[rows] += inner @ down
        grad_down += inner.T @ hidden[rows]
        grad_up += weights.T @ (hidden[rows] @ down.T) * head.lora_scale
    return grad_hidden, grad_down, grad_up
