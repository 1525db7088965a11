"""Log-probabilities of a batch, per sequence: sums, means and log-ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mint_train.batches.batch import Batch
from mint_train.batches.sums import segment_sums
from mint_train.errors import PluginError


class PackedLogprobs(list[torch.Tensor]):
    """The logprobs of a batch: a list with a tensor per datum, and one leaf with the same numbers.

    The gradient of one tensor costs a fraction of the gradients of thousands.
    """

    def __init__(
        self,
        logprobs: Sequence[torch.Tensor],
        vocabulary: Mapping[str, Sequence[torch.Tensor]] | None = None,
    ) -> None:
        super().__init__(logprobs)
        self.packed = packed_leaf(self)
        """`[tokens]`, with no graph to the tensors of the list."""
        self.vocabulary = {name: packed_leaf(values) for name, values in (vocabulary or {}).items()}
        """By name, what the loss asked of the vocabulary, each a leaf `[tokens]`."""


def packed_leaf(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate tensors to a leaf that asks for a gradient: `[tokens]`."""
    return concatenate([tensor.detach() for tensor in tensors]).requires_grad_()


def concatenate(logprobs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate tensors of any shapes: `[tokens]`."""
    return torch.cat([logprob if logprob.dim() == 1 else logprob.flatten() for logprob in logprobs])


def packed_logprobs(logprobs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate per-datum logprobs in at least float32: `[tokens]`."""
    packed = logprobs.packed if isinstance(logprobs, PackedLogprobs) else concatenate(logprobs)
    return packed if packed.dtype == torch.float64 else packed.float()


def sequence_logprobs(
    logprobs: Sequence[torch.Tensor], batch: Batch, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum each datum's logprobs, weighted: what the papers write as log pi(y | x).

    Args:
        logprobs: per datum, `[target tokens]`, in nats.
        batch: the batch that they belong to.
        weights: floating `[tokens]`, instead of the batch's own weights.

    Returns:
        float64 `[datums]`, differentiable.
    """
    return segment_sums(
        packed_logprobs(logprobs), batch.lengths, batch.weights if weights is None else weights
    )


def mean_logprobs(logprobs: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
    """Average each datum's logprobs over its trained tokens: `sequence_logprobs` by length, `[datums]`."""
    sums = sequence_logprobs(logprobs, batch)
    return sums / batch.trained_tokens.to(sums.dtype)


def packed_reference_logprobs(batch: Batch) -> torch.Tensor:
    """Return the reference's logprobs of a batch's target tokens, packed, float32 `[tokens]`.

    Raises:
        PluginError: the loss asked for no reference, so there is none.
    """
    if batch.reference_logprobs is None:
        raise PluginError(
            "this loss needs reference logprobs, but its reference hook asked for none: "
            "set reference=initial, or return it from the hook"
        )
    return batch.reference_logprobs


def reference_sequence_logprobs(batch: Batch, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Sum the reference's logprobs per datum: log pi_ref(y | x), float64 `[datums]`.

    Args:
        batch: the batch.
        weights: floating `[tokens]`, instead of the batch's own weights.

    Raises:
        PluginError: the loss asked for no reference, so there is none.
    """
    if weights is not None:
        return segment_sums(packed_reference_logprobs(batch), batch.lengths, weights)
    # where a group has no reference, asking for the batch's raises the error
    sums = [group.reference_sums for group in batch.groups]
    return torch.cat([packed_reference_logprobs(batch) if part is None else part for part in sums])


def log_ratios(logprobs: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
    """Compute log pi(y | x) - log pi_ref(y | x) per datum, nats, float64 `[datums]`.

    Raises:
        PluginError: the loss asked for no reference, so there is none.
    """
    return sequence_logprobs(logprobs, batch) - reference_sequence_logprobs(batch)
