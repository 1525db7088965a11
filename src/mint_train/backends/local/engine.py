"""Logprobs and gradients of a causal model with an adapter, one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenSequence:
    """One datum as tensors, each of shape `[target tokens]`."""

    input_tokens: torch.Tensor
    target_tokens: torch.Tensor
    trained: torch.Tensor


class Engine:
    """Computes logprobs of the trained targets, and pushes a loss's gradients into the adapter."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def forward(self, sequences: Sequence[TokenSequence], *, adapter: bool = True) -> list[torch.Tensor]:
        """Return float32 logprobs per sequence, 0.0 where nothing is trained, without gradients."""
        disabled = nullcontext() if adapter else self.model.disable_adapter()
        with torch.no_grad(), disabled:
            return [self.logprobs(sequence) for sequence in sequences]

    def forward_backward(
        self, sequences: Sequence[TokenSequence], loss_fn: Callable[[list[torch.Tensor]], torch.Tensor]
    ) -> None:
        """Add the gradients of a loss of all logprobs to the adapter's."""
        attached = [self.logprobs(sequence) for sequence in sequences]
        leaves = [logprobs.detach().requires_grad_() for logprobs in attached]
        loss_fn(leaves).backward()
        torch.autograd.backward(attached, [leaf.grad for leaf in leaves])

    def logprobs(self, sequence: TokenSequence) -> torch.Tensor:
        """Return one sequence's logprobs with their graph."""
        logits = self.model(input_ids=sequence.input_tokens[None]).logits[0]
        chosen = torch.log_softmax(logits.float(), -1).gather(-1, sequence.target_tokens[:, None])[:, 0]
        return torch.where(sequence.trained, chosen, 0.0)
