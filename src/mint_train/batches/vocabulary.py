"""What a loss may ask about the whole distribution over the vocabulary, at each target token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import torch

Vocabulary: TypeAlias = Mapping[str, "torch.Tensor"]
"""By name, a value per target token of a batch, packed: floating `[tokens]`. Empty where none is needed."""


class Quantity(NamedTuple):
    """One value of a distribution over the vocabulary."""

    text: str
    """What it is, in which unit."""
    of_reference: bool = False
    """Whether it takes the reference's distribution too."""
    negative: bool = False
    """Whether it is at most 0; else it is at least 0."""


QUANTITIES: Mapping[str, Quantity] = {
    "entropy": Quantity("the entropy of the policy's distribution, in nats"),
    "log_expected_prob": Quantity("log sum of pi(v)^2 over the vocabulary, in nats", negative=True),
    "forward_kl": Quantity("KL(reference || policy), in nats", of_reference=True),
    "reverse_kl": Quantity("KL(policy || reference), in nats", of_reference=True),
    "reference_entropy_share": Quantity(
        "the entropy of the reference's distribution, divided by that of the uniform one", of_reference=True
    ),
}
"""By name, what the hook `vocabulary` of a loss may ask for."""


def of_tokens(vocabulary: Vocabulary, start: int, stop: int) -> Vocabulary:
    """Cut the values to those of some consecutive tokens."""
    return {name: values[start:stop] for name, values in vocabulary.items()}
