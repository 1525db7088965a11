"""Logprobs of given tokens from hidden states, without ever holding ``[rows, vocabulary]``.

The vocabulary is projected block by block, and the softmax's sum is carried along with the largest
logit so far (online softmax, arXiv 1805.02867). A target's logprob is one number, so its derivative
by the hidden state is one vector, the target's weights less the expected weights: the expectation is
summed up while a block's softmax is at hand, and the backward only scales the result. Where the
projection itself carries an adapter the backward recomputes each block instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch

CPU_BLOCK = (1024, 1040)
"""Rows and tokens of a block on a CPU: it stays in cache between its product and its softmax. Rows a power
of two apart would fall on the same cache lines."""

GPU_BLOCK_BYTES = 64 * 2**20
"""Elsewhere a block is some rows with the whole vocabulary: few, large operations."""


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
        log_sums = torch.empty_like(logprobs)
        for rows in _row_slices(hidden, head):
            target = _target_logits(hidden[rows], targets[rows], head)
            log_sums[rows], expected = _softmax_sums(hidden[rows], head, with_weights=slope is not None)
            # The two were rounded apart: what is all but certain must not come out above 0.
            logprobs[rows] = (target.values - log_sums[rows]).clamp_(max=0)
            if slope is not None and expected is not None:
                weights = head.weight[targets[rows]].float()
                if target.cap_slope is not None:
                    weights *= target.cap_slope.unsqueeze(1)
                slope[rows] = weights.sub_(expected).mul_(head.scale)
        ctx.head = head
        if slope is not None:
            ctx.save_for_backward(slope)
        else:
            ctx.save_for_backward(hidden, down, up, targets, log_sums)
        return logprobs

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.head.down is None:
            (slope,) = ctx.saved_tensors
            return slope * grad.unsqueeze(1).to(slope.dtype), None, None, None, None
        hidden, down, up, targets, log_sums = ctx.saved_tensors
        grad_hidden, grad_down, grad_up = _recompute(hidden, down, up, targets, log_sums, ctx.head, grad)
        return grad_hidden, grad_down, grad_up, None, None


class _Logits(NamedTuple):
    """Logits, float32, and the softcap's derivative of the same shape, or None."""

    values: torch.Tensor
    cap_slope: torch.Tensor | None


def _block_shape(hidden: torch.Tensor, head: Head) -> tuple[int, int]:
    """Rows and tokens of a block, at most."""
    vocabulary = head.weight.shape[0]
    if hidden.device.type == "cpu":
        most, tokens = CPU_BLOCK
    else:
        most, tokens = max(1, GPU_BLOCK_BYTES // (4 * vocabulary)), vocabulary
    # Slices of equal size: a small last one would run at a lower rate.
    return -(-len(hidden) // -(-len(hidden) // most)) if len(hidden) else 1, tokens


def _row_slices(hidden: torch.Tensor, head: Head) -> Iterator[slice]:
    size, _ = _block_shape(hidden, head)
    for start in range(0, len(hidden), size):
        yield slice(start, min(start + size, len(hidden)))


def _blocks(hidden: torch.Tensor, head: Head) -> Iterator[tuple[slice, _Logits]]:
    """Slices of the vocabulary with the logits of all rows, in one buffer."""
    vocabulary, (_, size) = head.weight.shape[0], _block_shape(hidden, head)
    buffer = hidden.new_empty(len(hidden) * min(size, vocabulary))
    inner = None if head.down is None else hidden @ head.down.T
    for start in range(0, vocabulary, size):
        tokens = slice(start, min(start + size, vocabulary))
        width = tokens.stop - start
        logits = buffer[: len(hidden) * width].view(len(hidden), width)
        torch.mm(hidden, head.weight[tokens].T, out=logits)
        if inner is not None and head.up is not None:
            logits.addmm_(inner, head.up[tokens].T, alpha=head.lora_scale)
        if head.bias is not None:
            logits += head.bias[tokens]
        yield tokens, _scaled_and_capped(logits.float(), head)


def _target_logits(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> _Logits:
    """The logit of each row's target, ``[rows]``."""
    logits = (hidden * head.weight[targets]).sum(1, dtype=torch.float32)
    if head.down is not None and head.up is not None:
        logits += ((hidden @ head.down.T) * head.up[targets]).sum(1) * head.lora_scale
    if head.bias is not None:
        logits += head.bias[targets]
    return _scaled_and_capped(logits, head)


def _scaled_and_capped(logits: torch.Tensor, head: Head) -> _Logits:
    """What the model makes of the projection's output, in its place."""
    if head.scale != 1.0:
        logits *= head.scale
    if head.softcap is None:
        return _Logits(logits, None)
    squashed = logits.div_(head.softcap).tanh_()
    return _Logits(squashed * head.softcap, 1 - squashed * squashed)


def _softmax_sums(
    hidden: torch.Tensor, head: Head, *, with_weights: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log of each row's sum of exponentials, ``[rows]``, and the weights that the softmax expects.

    The latter, float32 ``[rows, hidden]``, is the derivative of the former by the projection's output,
    taken through the weights; None where it is not asked for.
    """
    top = torch.full((len(hidden), 1), -torch.inf, device=hidden.device)
    total = torch.zeros_like(top)
    expected = torch.zeros(hidden.shape, device=hidden.device) if with_weights else None
    for tokens, logits in _blocks(hidden, head):
        block_top = logits.values.amax(1, keepdim=True)
        higher = torch.maximum(top, block_top)
        shares = torch.softmax(logits.values, 1, out=logits.values)
        # The largest logit's exponential is 1 before it is divided by the sum: so its share tells the sum.
        block_total = block_top.sub_(higher).exp_().div_(shares.amax(1, keepdim=True))
        shrink, top = (top - higher).exp_(), higher
        total.mul_(shrink).add_(block_total)
        if expected is not None:
            if logits.cap_slope is not None:
                shares *= logits.cap_slope
            shares *= block_total
            expected *= shrink
            _add_product(expected, shares.to(hidden.dtype), head.weight[tokens])
    log_sums = total.log().add_(top).squeeze(1)
    return log_sums, None if expected is None else expected.div_(total)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add a product to a float32 sum; the product itself runs in the dtype of its factors."""
    if total.dtype is left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _recompute(
    hidden: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    targets: torch.Tensor,
    log_sums: torch.Tensor,
    head: Head,
    grad: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients by hidden states and both LoRA matrices, one block of logits at a time."""
    grad_hidden = torch.empty_like(hidden)
    grad_down, grad_up = torch.zeros_like(down), torch.zeros_like(up)
    for rows in _row_slices(hidden, head):
        part, wanted = hidden[rows], targets[rows]
        by_hidden = torch.zeros(part.shape, device=hidden.device)
        by_inner = torch.zeros(len(part), len(down), device=hidden.device)
        inner = part @ down.T
        for tokens, logits in _blocks(part, head):
            weights = logits.values.sub_(log_sums[rows].unsqueeze(1)).exp_()
            here = ((wanted >= tokens.start) & (wanted < tokens.stop)).nonzero().squeeze(1)
            weights[here, wanted[here] - tokens.start] -= 1
            if logits.cap_slope is not None:
                weights *= logits.cap_slope
            weights = weights.mul_(-head.scale * grad[rows].unsqueeze(1)).to(hidden.dtype)
            _add_product(by_hidden, weights, head.weight[tokens])
            _add_product(by_inner, weights, up[tokens])
            grad_up[tokens] += weights.T @ inner * head.lora_scale
        by_inner *= head.lora_scale
        grad_hidden[rows] = by_hidden.addmm_(by_inner, down.float())
        grad_down += by_inner.T @ part.float()
    return grad_hidden, grad_down, grad_up
