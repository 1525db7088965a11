"""The check of a loss that calls itself linear: a backend differentiates the model before it has logprobs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mint_train.conformance.material import Material, gradients_or_zeros, require_that

SPREADS = (0.1, 1.0, 3.0, 10.0, 30.0)
TOLERANCE = 1e-6


def linear_as_it_says(material: Material) -> str:
    """Check that a loss with the trait LINEAR has one gradient at all logprobs, and keeps no state."""
    first, *others = gradients_and_states(material)
    scale = float(first[0].abs().max())
    changes = max(float((gradient - first[0]).abs().max()) for gradient, _ in others) / (scale or 1.0)
    kept = sorted({name for _, state in (first, *others) for name in state})
    if not material.loss.is_linear:
        if changes > TOLERANCE or kept:
            return "not tried: the loss does not say that it is linear (LINEAR)"
        return "its gradient is the same at all logprobs: with the trait LINEAR a step takes one pass"
    require_that(not kept, f"it keeps {', '.join(kept)} as state: leave the trait LINEAR out")
    problem = f"its gradient changes by {changes:.2g} of itself with the logprobs: leave the trait LINEAR out"
    require_that(changes <= TOLERANCE, problem)
    return f"one gradient at {1 + len(others)} sets of logprobs"


def gradients_and_states(material: Material) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
    """Yield the gradient by all that the loss is given, packed, and what it keeps, at several logprobs."""
    batch = material.batch()
    for seed, spread in enumerate(SPREADS):
        logprobs = material.logprobs(spread, seed)
        vocabulary = {
            name: (values.detach() / spread).requires_grad_()
            for name, values in material.vocabulary(batch).items()
        }
        state: dict[str, float] = {}
        value, _ = material.loss.evaluate(batch, logprobs, state, vocabulary)
        yield torch.cat(gradients_or_zeros(value, [*logprobs, *vocabulary.values()])), state
