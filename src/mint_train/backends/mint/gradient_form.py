"""How gradients reach the service: through a loss of the service whose gradient is what was sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mint_train.sdk import Datum, types

CROSS_ENTROPY: Literal["cross_entropy"] = "cross_entropy"
IMPORTANCE_SAMPLING: Literal["importance_sampling"] = "importance_sampling"

VANISHING = 1e-12
"""The derivative by a logprob up to which a service may round the norm to 0, as where a loss is saturated."""


@dataclass(frozen=True, slots=True)
class GradientForm:
    """A loss of the service, and what it divides by.

    `cross_entropy` is meant to be `sum(-logprob * weight)`, so `weights = -dL/dlogprob` give the gradient of
    L. `importance_sampling` is meant to be `sum(-exp(logprob - old logprob) * advantage)`: with the logprobs
    just received as the old ones the ratio is 1, and `advantages = -dL/dlogprob` give the same gradient.
    """

    loss_fn: Literal["cross_entropy", "importance_sampling"]
    divided: bool = False
    """Whether the service divides a datum by its target tokens, and an update by its datums."""

    def data(
        self,
        sent: Sequence[Datum],
        gradients: Sequence[np.ndarray],
        logprobs: Sequence[np.ndarray],
        datums: int,
    ) -> list[Datum]:
        """Return the datums of a request whose gradient is the one given.

        Args:
            sent: the datums that the logprobs are of; their weights do not matter.
            gradients: per datum, the loss by the logprobs, float32 `[target tokens]`.
            logprobs: per datum, as just received, float32 `[target tokens]`.
            datums: how many go into the update altogether.
        """
        built = []
        for datum, gradient, logprob in zip(sent, gradients, logprobs, strict=True):
            inputs = {"target_tokens": datum.loss_fn_inputs["target_tokens"]}
            if self.loss_fn == CROSS_ENTROPY:
                inputs["weights"] = tensor(-gradient)
            else:
                scale = np.float32(gradient.size * datums if self.divided else 1)
                inputs |= {"advantages": tensor(-gradient * scale), "logprobs": tensor(logprob)}
            built.append(Datum(model_input=datum.model_input, loss_fn_inputs=inputs))
        return built


def have_a_norm(gradients: Sequence[np.ndarray]) -> bool:
    """Return whether a service has to find a norm above 0 of some gradients by logprobs."""
    return any(bool((abs(gradient) > VANISHING).any()) for gradient in gradients)


def gradient_norm(answer: types.OptimStepResponse) -> float | None:
    """Return the norm of an update's gradients, where the service names it."""
    norms = [norm for name, norm in (answer.metrics or {}).items() if name.endswith("grad_norm")]
    return norms[0] if norms else None


def was_without_gradients(answer: types.OptimStepResponse) -> bool:
    """Return whether an update found no gradients, where the service names their norm.

    SkyRL looks for gradients to compute first, for updates last: on a busy server both may come in between.
    """
    return gradient_norm(answer) == 0.0


tensor = types.TensorData.from_numpy
FORMS = (
    GradientForm(CROSS_ENTROPY),
    GradientForm(IMPORTANCE_SAMPLING, divided=True),
    GradientForm(IMPORTANCE_SAMPLING),
)
"""In the order in which they are tried."""
