"""What a loss asks of the whole distribution at each position, without a tensor of ``[rows, vocabulary]``.

Policy and reference are projected block by block together, each with a running maximum, as for logprobs. The
backward projects each block again: a value's derivative with respect to the logits is a number per token of
the vocabulary, so it is multiplied with the projection's weights while the block is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any, NamedTuple, cast

import torch

from mint_train.backends.local.logprobs import (
    Head,
    Logits,
    blocks,
    precise,
    recompute,
    row_slices,
    subtract_targets,
    target_logits,
)

BUFFERS = 4
"""Blocks in memory at once: the logits of policy and reference, a softmax, and a product with it."""


class States(NamedTuple):
    """A model's hidden states ``[rows, hidden]``, and the head that projects them."""

    hidden: torch.Tensor
    head: Head


class _Softmax:
    """The softmax of rows whose logits come block by block: its normaliser, and expectations under it."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.total = hidden.new_zeros(len(hidden), 1, dtype=precise(hidden.dtype))
        self.squares = torch.zeros_like(self.total)
        self.top = torch.full_like(self.total, -torch.inf)
        self.sums: dict[str, torch.Tensor] = {}

    def add(self, logits: torch.Tensor, **values: torch.Tensor) -> None:
        """Add a block of logits, and values of its tokens to average: ``[rows, tokens]`` each."""
        top = torch.maximum(self.top, logits.amax(1, keepdim=True))
        shrink, self.top = (self.top - top).exp_(), top
        masses = (logits - top).exp_()
        self.total = self.total * shrink + masses.sum(1, keepdim=True)
        for name, value in values.items():
            product = (masses * value).sum(1, keepdim=True)
            self.sums[name] = self.sums[name] * shrink + product if name in self.sums else product
        self.squares = self.squares * shrink.square() + masses.square_().sum(1, keepdim=True)

    @property
    def log_sum(self) -> torch.Tensor:
        """The log-sum-exp of the logits, ``[rows, 1]``."""
        return self.total.log() + self.top

    def mean(self, name: str) -> torch.Tensor:
        """The expectation of a value, ``[rows, 1]``."""
        return self.sums[name] / self.total


class _Found(NamedTuple):
    """What the forward knows of some rows, ``[rows, 1]`` each."""

    log_sum: torch.Tensor
    reference_log_sum: torch.Tensor
    values: dict[str, torch.Tensor]


def vocabulary_values(
    states: States, targets: torch.Tensor, names: Sequence[str], reference: States | None
) -> tuple[torch.Tensor, ...]:
    """Compute the logprob of each row's target, and beside it what is asked of the vocabulary.

    Args:
        states: those of the policy.
        targets: int64 ``[rows]``.
        names: out of `batches.vocabulary.QUANTITIES`.
        reference: the reference's states of the same rows, without a graph, where a quantity needs them.

    Returns:
        the logprobs, then a tensor per name: float32 ``[rows]`` (float64 for hidden states in float64),
        differentiable with respect to the policy's hidden states and its head's LoRA.
    """
    head = states.head
    applied = _VocabularyValues.apply(
        states.hidden, head.down, head.up, targets, head, tuple(names), reference
    )
    return cast(tuple[torch.Tensor, ...], applied)


class _VocabularyValues(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        down: torch.Tensor | None,
        up: torch.Tensor | None,
        targets: torch.Tensor,
        head: Head,
        names: tuple[str, ...],
        reference: States | None,
    ) -> tuple[torch.Tensor, ...]:
        outputs = hidden.new_empty(1 + len(names), len(hidden), dtype=precise(hidden.dtype))
        log_sums = outputs.new_empty(2, len(hidden), 1)
        for rows in row_slices(hidden, head, BUFFERS):
            frozen = None if reference is None else States(reference.hidden[rows], reference.head)
            found = _find(States(hidden[rows], head), frozen)
            target = target_logits(hidden[rows], targets[rows], head).values
            # Both terms are rounded, so the logprob of a near-certain token could exceed 0.
            logprobs = (target - found.log_sum.squeeze(1)).clamp_(max=0)
            outputs[:, rows] = torch.stack([logprobs, *(found.values[name].squeeze(1) for name in names)])
            log_sums[:, rows] = torch.stack([found.log_sum, found.reference_log_sum])
        ctx.head, ctx.names, ctx.reference = head, names, reference
        ctx.save_for_backward(hidden, down, up, targets, outputs[1:], log_sums)
        return tuple(outputs.clone())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, down, up, targets, values, (log_sums, frozen_log_sums) = ctx.saved_tensors
        head = replace(ctx.head, down=down, up=up)
        frozen = _frozen_blocks(hidden, head, ctx.reference)

        def weights_of(rows: slice, tokens: slice, logits: Logits) -> torch.Tensor:
            log_p = logits.values.sub_(log_sums[rows])
            p = log_p.exp()
            total = p.clone()
            subtract_targets(total, targets[rows], tokens)
            total *= -grads[0][rows].unsqueeze(1)
            other = next(frozen)
            log_q = None if other is None else other - frozen_log_sums[rows]
            for name, value, grad in zip(ctx.names, values, grads[1:], strict=True):
                slope = _slope(name, log_p, p, log_q, value[rows].unsqueeze(1))
                if slope is not None:
                    total += slope.mul_(grad[rows].unsqueeze(1))
            if logits.cap_grad is not None:
                total *= logits.cap_grad
            return total.mul_(head.scale)

        return *recompute(hidden, head, weights_of, BUFFERS), None, None, None, None


def _frozen_blocks(
    hidden: torch.Tensor, head: Head, reference: States | None
) -> Iterator[torch.Tensor | None]:
    """Yield the reference's logits in the order in which `recompute` asks for blocks; None without one."""
    if reference is None:
        yield from repeat(None)
        return
    for rows in row_slices(hidden, head, BUFFERS):
        for _, logits in blocks(reference.hidden[rows], reference.head):
            yield logits.values


def _find(policy: States, reference: States | None) -> _Found:
    """Project some rows block by block, and compute every quantity that can be had of them."""
    p, q = _Softmax(policy.hidden), _Softmax(policy.hidden)
    for z, y in _paired_blocks(policy, reference):
        if y is None:
            p.add(z, z=z)
        else:
            gap = z - y
            p.add(z, z=z, gap=gap)
            q.add(y, y=y, gap=gap)
    log_sum, other_log_sum = p.log_sum, q.log_sum
    values = {
        "entropy": (log_sum - p.mean("z")).clamp_(min=0),
        "log_expected_prob": (p.squares.log() - 2 * p.total.log()).clamp_(max=0),
    }
    if reference is not None:
        shift = log_sum - other_log_sum
        values["reverse_kl"] = (p.mean("gap") - shift).clamp_(min=0)
        values["forward_kl"] = (shift - q.mean("gap")).clamp_(min=0)
        most = math.log(len(reference.head.weight))
        values["reference_entropy_share"] = ((other_log_sum - q.mean("y")) / most).clamp_(min=0)
    return _Found(log_sum, other_log_sum, values)


def _paired_blocks(
    policy: States, reference: States | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Yield blocks of the policy's logits, with the same block of the reference's where there is one."""
    if reference is None:
        yield from ((logits.values, None) for _, logits in blocks(*policy))
    else:
        both = zip(blocks(*policy), blocks(*reference), strict=True)
        yield from ((own.values, other.values) for (_, own), (_, other) in both)


def _slope(
    name: str, log_p: torch.Tensor, p: torch.Tensor, log_q: torch.Tensor | None, value: torch.Tensor
) -> torch.Tensor | None:
    """Return a quantity's derivative with respect to the policy's logits, ``[rows, tokens]``; None for 0.

    Args:
        name: which quantity.
        log_p: the policy's logprobs of a block's tokens, ``[rows, tokens]``.
        p: its probabilities of them.
        log_q: the reference's logprobs of them, where there is a reference.
        value: the quantity itself, ``[rows, 1]``.
    """
    if name == "entropy":
        return -p * (log_p + value)
    if name == "log_expected_prob":
        return 2 * (p.square() * (-value).exp() - p)
    if name == "forward_kl" and log_q is not None:
        return p - log_q.exp()
    if name == "reverse_kl" and log_q is not None:
        return p * (log_p - log_q - value)
    return None


def values_of_logits(
    logits: torch.Tensor, targets: torch.Tensor, names: Sequence[str], reference: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    """Compute the same of whole logits ``[rows, vocabulary]``, for a model that gives nothing else."""
    log_p = logits.to(precise(logits.dtype)).log_softmax(-1)
    p = log_p.exp()
    values = {
        "entropy": -(p * log_p).sum(-1),
        "log_expected_prob": (2 * log_p).logsumexp(-1),
    }
    if reference is not None:
        log_q = reference.to(log_p.dtype).log_softmax(-1)
        q = log_q.exp()
        values["forward_kl"] = (q * (log_q - log_p)).sum(-1)
        values["reverse_kl"] = (p * (log_p - log_q)).sum(-1)
        values["reference_entropy_share"] = -(q * log_q).sum(-1) / math.log(log_q.shape[-1])
    picked = log_p.gather(1, targets.unsqueeze(1)).squeeze(1)
    return picked, *(values[name] for name in names)
