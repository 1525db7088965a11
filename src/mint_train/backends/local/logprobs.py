"""Compute logprobs of given tokens from hidden states, without a tensor of ``[rows, vocabulary]``.

The vocabulary is projected block by block, with a running maximum and sum of the softmax (online softmax,
arXiv 1805.02867). A target's logprob is one number, so its derivative with respect to the hidden state is
one vector: the target's weights minus the expected weights. The forward accumulates that expectation from
each block's softmax, and the backward only scales it. If the projection itself has an adapter, the backward
recomputes each block instead.

Logits are float32 at least: in bfloat16, a logit of 20 is off by up to 0.06, and so would be its logprob.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple, cast

import torch

CPU_BLOCK = (1024, 1040)
"""Rows and tokens per block on a CPU, chosen so that a block stays in cache between its product and its
softmax. The width is not a power of two, because rows would then compete for the same cache lines."""

GPU_BLOCK_BYTES = (64 * 2**20, 512 * 2**20)
"""Least and most bytes of a block on CUDA: some rows with the whole vocabulary. Every block reads all of the
projection's weights, so blocks should be few; but none should take more than a 64th of the memory."""


@dataclass(frozen=True)
class Head:
    """A vocabulary projection ``logits = cap(scale * (hidden @ (weight + up @ down).T + bias))``.

    Attributes:
        weight: ``[vocabulary, hidden]``, frozen.
        bias: ``[vocabulary]`` or None, frozen.
        down, up: the projection's LoRA, ``[rank, hidden]`` and ``[vocabulary, rank]``, or None; float32 even
            if the weight is bfloat16.
        lora_scale: factor of ``up @ down``.
        scale: factor of the logits.
        softcap: logits become ``softcap * tanh(logits / softcap)``; None leaves them.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    lora_scale: float = 1.0
    scale: float = 1.0
    softcap: float | None = None

    def lora(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return `down` and `up` in a dtype, or None."""
        return None if self.down is None or self.up is None else (self.down.to(dtype), self.up.to(dtype))


def precise(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which logits and their sums are kept: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def mm_precise(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return a matrix product that is precise even if its factors are not."""
    dtype = precise(left.dtype)
    if left.dtype is dtype:
        return torch.mm(left, right, out=out)
    if left.device.type == "cuda":  # its kernels add up in float32 anyway
        return torch.mm(left, right, out_dtype=dtype, out=out)
    return torch.mm(left.to(dtype), right.to(dtype), out=out)


def target_logprobs(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
    """Compute the logprob of each row's target.

    Args:
        hidden: ``[rows, hidden]``, any floating dtype.
        targets: int64 ``[rows]``.
        head: the vocabulary projection.

    Returns:
        float32 ``[rows]`` (float64 for hidden states in float64), nats, differentiable with respect to
        `hidden` and the head's LoRA.
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
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] and down is None else None
        logprobs = torch.empty(len(hidden), dtype=precise(hidden.dtype), device=hidden.device)
        log_sums = torch.empty_like(logprobs)
        for rows in row_slices(hidden, head):
            target = target_logits(hidden[rows], targets[rows], head)
            log_sums[rows], expected = _softmax_sums(hidden[rows], head, with_weights=hidden_grad is not None)
            # Both terms are rounded, so the logprob of a near-certain token could exceed 0.
            logprobs[rows] = (target.values - log_sums[rows]).clamp_(max=0)
            if hidden_grad is not None and expected is not None:
                weights = head.weight[targets[rows]].to(logprobs.dtype)
                if target.cap_grad is not None:
                    weights *= target.cap_grad.unsqueeze(1)
                hidden_grad[rows] = weights.sub_(expected).mul_(head.scale)
        ctx.head = head
        if hidden_grad is not None:
            ctx.save_for_backward(hidden_grad)
        else:
            ctx.save_for_backward(hidden, down, up, targets, log_sums)
        return logprobs

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.head.down is None:
            (hidden_grad,) = ctx.saved_tensors
            return hidden_grad * grad.unsqueeze(1).to(hidden_grad.dtype), None, None, None, None
        hidden, down, up, targets, log_sums = ctx.saved_tensors
        head = replace(ctx.head, down=down, up=up)

        def weights_of(rows: slice, tokens: slice, logits: Logits) -> torch.Tensor:
            weights = logits.values.sub_(log_sums[rows].unsqueeze(1)).exp_()
            subtract_targets(weights, targets[rows], tokens)
            if logits.cap_grad is not None:
                weights *= logits.cap_grad
            return weights.mul_(-head.scale * grad[rows].unsqueeze(1))

        return *recompute(hidden, head, weights_of), None, None


class Logits(NamedTuple):
    """Precise logits, and the derivative of the softcap in the same shape, or None."""

    values: torch.Tensor
    cap_grad: torch.Tensor | None


def _block_shape(hidden: torch.Tensor, head: Head, buffers: int = 1) -> tuple[int, int]:
    """Return the number of rows and of tokens per block."""
    vocabulary = head.weight.shape[0]
    if hidden.device.type == "cpu":
        most, tokens = CPU_BLOCK
    else:
        bytes_per_row = 4 * vocabulary * buffers
        most, tokens = max(1, _gpu_block_bytes(hidden.device) // bytes_per_row), vocabulary
    # Slices of equal size: a small last one would run at a lower rate.
    return -(-len(hidden) // -(-len(hidden) // most)) if len(hidden) else 1, tokens


@cache
def _gpu_block_bytes(device: torch.device) -> int:
    least, most = GPU_BLOCK_BYTES
    if device.type != "cuda":
        return least
    return min(most, max(least, torch.cuda.get_device_properties(device).total_memory // 64))


def row_slices(hidden: torch.Tensor, head: Head, buffers: int = 1) -> Iterator[slice]:
    """Yield slices of the rows; `buffers` blocks of a slice take as much memory as one full block."""
    size, _ = _block_shape(hidden, head, buffers)
    for start in range(0, len(hidden), size):
        yield slice(start, min(start + size, len(hidden)))


def blocks(hidden: torch.Tensor, head: Head) -> Iterator[tuple[slice, Logits]]:
    """Yield slices of the vocabulary with the logits of all rows, which share one buffer."""
    vocabulary, (_, size) = head.weight.shape[0], _block_shape(hidden, head)
    dtype = precise(hidden.dtype)
    buffer = hidden.new_empty(len(hidden) * min(size, vocabulary), dtype=dtype)
    lora = head.lora(dtype)
    inner = None if lora is None else hidden.to(dtype) @ lora[0].T
    for start in range(0, vocabulary, size):
        tokens = slice(start, min(start + size, vocabulary))
        width = tokens.stop - start
        logits = buffer[: len(hidden) * width].view(len(hidden), width)
        mm_precise(hidden, head.weight[tokens].T, out=logits)
        if lora is not None and inner is not None:
            logits.addmm_(inner, lora[1][tokens].T, alpha=head.lora_scale)
        if head.bias is not None:
            logits += head.bias[tokens]
        yield tokens, _scaled_and_capped(logits, head)


def target_logits(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> Logits:
    """Compute the logit of each row's target, ``[rows]``."""
    hidden = hidden.to(precise(hidden.dtype))
    logits = (hidden * head.weight[targets]).sum(1)
    if (lora := head.lora(hidden.dtype)) is not None:
        down, up = lora
        logits += ((hidden @ down.T) * up[targets]).sum(1) * head.lora_scale
    if head.bias is not None:
        logits += head.bias[targets]
    return _scaled_and_capped(logits, head)


def _scaled_and_capped(logits: torch.Tensor, head: Head) -> Logits:
    """Scale and cap the projection's output in place, as the model does."""
    if head.scale != 1.0:
        logits *= head.scale
    if head.softcap is None:
        return Logits(logits, None)
    squashed = logits.div_(head.softcap).tanh_()
    return Logits(squashed * head.softcap, 1 - squashed * squashed)


def _softmax_sums(
    hidden: torch.Tensor, head: Head, *, with_weights: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute each row's log-sum-exp of the logits, ``[rows]``, and its expected weights.

    The expected weights, float32 ``[rows, hidden]``, are the average of the projection's rows under the
    softmax, i.e. the derivative of the log-sum-exp with respect to the hidden state before `head.scale`.
    They are None unless `with_weights`.
    """
    dtype = precise(hidden.dtype)
    top = torch.full((len(hidden), 1), -torch.inf, dtype=dtype, device=hidden.device)
    total = torch.zeros_like(top)
    expected = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device) if with_weights else None
    for tokens, logits in blocks(hidden, head):
        block_top = logits.values.amax(1, keepdim=True)
        higher = torch.maximum(top, block_top)
        shares = torch.softmax(logits.values, 1, out=logits.values)
        # The largest logit's exponential is 1 before the division by the sum, so its share is 1 / sum.
        block_total = block_top.sub_(higher).exp_().div_(shares.amax(1, keepdim=True))
        shrink, top = (top - higher).exp_(), higher
        total.mul_(shrink).add_(block_total)
        if expected is not None:
            if logits.cap_grad is not None:
                shares *= logits.cap_grad
            shares *= block_total
            expected *= shrink
            add_product(expected, shares.to(hidden.dtype), head.weight[tokens])
    log_sums = total.log().add_(top).squeeze(1)
    return log_sums, None if expected is None else expected.div_(total)


def subtract_targets(weights: torch.Tensor, targets: torch.Tensor, tokens: slice) -> None:
    """Subtract 1 at each row's target, where it is among the tokens of a block."""
    here = ((targets >= tokens.start) & (targets < tokens.stop)).nonzero().squeeze(1)
    weights[here, targets[here] - tokens.start] -= 1


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add a matrix product to a precise sum."""
    if total.dtype is left.dtype:
        total.addmm_(left, right)
    else:
        total += mm_precise(left, right)


def recompute(
    hidden: torch.Tensor,
    head: Head,
    weights_of: Callable[[slice, slice, Logits], torch.Tensor],
    buffers: int = 1,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Compute the gradients of the hidden states and of the head's LoRA, one block of logits at a time.

    Args:
        hidden: ``[rows, hidden]``.
        head: the vocabulary projection.
        weights_of: gets the slices of rows and of tokens and their logits, which it may overwrite, and
            returns the derivative with respect to the projection's output before scale and cap.
        buffers: blocks in memory at once.

    Returns:
        of `hidden`, of `head.down` and of `head.up`; the latter two are None without a LoRA.
    """
    dtype = precise(hidden.dtype)
    grad_hidden = torch.empty_like(hidden)
    grad_down = None if head.down is None else torch.zeros_like(head.down)
    grad_up = None if head.up is None else torch.zeros_like(head.up)
    down, up = head.lora(dtype) or (None, None)
    for rows in row_slices(hidden, head, buffers):
        part = hidden[rows]
        by_hidden = torch.zeros(part.shape, dtype=dtype, device=part.device)
        if down is not None:
            by_inner = torch.zeros(len(part), len(down), dtype=dtype, device=part.device)
            inner = part.to(dtype) @ down.T
        for tokens, logits in blocks(part, head):
            weights = weights_of(rows, tokens, logits)
            add_product(by_hidden, weights.to(hidden.dtype), head.weight[tokens])
            if up is not None and grad_up is not None:
                by_inner.addmm_(weights, up[tokens])
                grad_up[tokens] += weights.T @ inner * head.lora_scale
        if down is not None and grad_down is not None:
            by_inner *= head.lora_scale
            by_hidden.addmm_(by_inner, down)
            grad_down += by_inner.T @ part.to(dtype)
        grad_hidden[rows] = by_hidden
    return grad_hidden, grad_down, grad_up
