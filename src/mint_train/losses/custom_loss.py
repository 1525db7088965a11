"""A loss as `forward_backward_custom` calls it: differentiated here and checked before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, islice
from typing import Any

import torch

from mint_train.batches.batch import Batch
from mint_train.batches.logprobs import PackedLogprobs
from mint_train.errors import LossError
from mint_train.losses.guard import (
    check_gradients,
    check_linear,
    check_logprobs,
    check_state,
    check_total_weight,
    check_untouched,
)
from mint_train.losses.loss import Loss
from mint_train.plugins.guarding import said
from mint_train.sdk import Datum

TRIAL_LOGPROB = -1.0
"""What every logprob is where a linear loss is differentiated before the real ones are known, in nats."""


class CustomLoss:
    """A loss bound to the batches of a step, as `forward_backward_custom` calls it.

    The step's loss is the mean of the batches' losses, each batch counting by the weight of its groups. It is
    differentiated here, so that a missing or non-finite gradient stops the step before anything is sent. The
    caller gets the loss's value, with exactly these gradients attached.
    """

    def __init__(self, loss: Loss, batches: Sequence[Batch], state: dict[str, float]) -> None:
        self.loss, self.batches, self.state = loss, batches, state
        whole = len(batches) == 1
        self.step = batches[0] if whole else Batch([group for batch in batches for group in batch.groups])
        self.metrics: dict[str, float] = {}
        self.known: list[torch.Tensor] | None = None
        """The gradients that the backend was given ahead of the logprobs, if it was."""

    def known_gradients(self) -> list[torch.Tensor] | None:
        """Return the gradients that the loss has whatever the logprobs are, or None if it has no such.

        They are those of a loss that is linear in the logprobs and keeps no state. With them a backend can
        differentiate the model in the same pass that computes the logprobs. The call with these logprobs
        then checks that the gradients are the same.

        Returns:
            A float32 tensor for each of the logprobs that the loss is called with.
        """
        if not self.loss.is_linear or self.state:
            return None
        trial = CustomLoss(self.loss, self.batches, {})
        lengths = self.step.lengths.tolist() * (1 + len(self.loss.vocabulary))
        try:
            logprobs = [torch.full((length,), TRIAL_LOGPROB, requires_grad=True) for length in lengths]
            _, gradients = trial.differentiate(logprobs)
        except LossError:  # with the real logprobs it either works or says what is wrong
            return None
        self.known = None if trial.state else gradients
        return self.known

    def __call__(
        self,
        data: list[Datum],  # noqa: ARG002 - the batches hold them
        logprobs: list[torch.Tensor],
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Compute the loss and its metrics from the policy's logprobs.

        Args:
            data: the datums of the step.
            logprobs: float32 `[target tokens]` per datum. Behind them follows, name by name, what the loss
                needs of the vocabulary, as a tensor per datum too.

        Raises:
            LossError: the value, a metric or a gradient is detached or not finite; or the gradients are not
                those that the backend was given ahead.
        """
        value, gradients = self.differentiate(logprobs)
        if self.known is not None:
            check_linear(self.loss.name, self.known, gradients, self.state)
        return with_gradients(value, gradients, logprobs), self.metrics

    def differentiate(self, logprobs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Compute the loss, its gradients by the logprobs, and its metrics.

        Raises:
            LossError: the value, a metric or a gradient is detached or not finite; the loss changed its
                logprobs.
        """
        size = len(self.step.data)
        asked = {
            name: logprobs[size * number : size * (number + 1)]
            for number, name in enumerate(self.loss.vocabulary, start=1)
        }
        check_logprobs(self.step, logprobs, 1 + len(asked))
        for batch in self.batches:
            check_total_weight(batch)
        shares = [batch.total_weight / self.step.total_weight for batch in self.batches]
        values, metrics, packed, start = [], [], [], 0
        for batch in self.batches:
            datums = slice(start, start + len(batch.data))
            given = logprobs[datums], {name: asked[name][datums] for name in asked}
            own = PackedLogprobs(*given)
            start = datums.stop
            packed.append(own)
            value, of_batch = self.loss.compute(batch, own, self.state, own.vocabulary)
            check_untouched(self.loss.name, own, *given)
            check_state(self.loss.name, self.state)
            values.append(value)
            metrics.append(of_batch)
        value = torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum()
        self.metrics = mean_metrics(metrics, shares)
        found = differentiated(self.loss.name, value, packed)
        return value, check_gradients(self.loss.name, self.step, found)


def differentiated(
    loss: str, value: torch.Tensor, batches: Sequence[PackedLogprobs]
) -> list[torch.Tensor | None]:
    """Differentiate by each datum's logprobs, as `datum_gradients` does.

    Raises:
        LossError: the loss wrote over what its gradient needs, or a backward of its own raised.
    """
    try:
        return datum_gradients(value, batches)
    except Exception as error:
        raise LossError(
            f'the loss "{loss}" cannot be differentiated: {type(error).__name__}: {said(error)}'
        ) from error


def datum_gradients(value: torch.Tensor, batches: Sequence[PackedLogprobs]) -> list[torch.Tensor | None]:
    """Differentiate by each datum's logprobs; None where the value does not depend on them.

    A loss may use the one packed tensor, the tensors of the list, or both: their gradients are added. Behind
    them stand the gradients by what was asked of the vocabulary, name by name, 0 where it plays no part.
    """
    leaves = [leaf for batch in batches for leaf in (batch.packed, *batch, *batch.vocabulary.values())]
    found = iter(torch.autograd.grad(value, leaves, allow_unused=True))
    gradients: list[torch.Tensor | None] = []
    by_name: dict[str, list[torch.Tensor | None]] = {}
    for batch in batches:
        of_packed, own = next(found), list(islice(found, len(batch)))
        if of_packed is not None:
            parts = per_datum(of_packed, batch)
            own = [part if one is None else part + one for part, one in zip(parts, own, strict=True)]
        gradients += own
        for name, leaf in batch.vocabulary.items():
            of_leaf = next(found)
            whole = torch.zeros_like(leaf) if of_leaf is None else of_leaf
            by_name.setdefault(name, []).extend(per_datum(whole, batch))
    return [*gradients, *chain.from_iterable(by_name.values())]


def per_datum(packed: torch.Tensor, batch: PackedLogprobs) -> list[torch.Tensor]:
    """Cut a packed gradient to the datums of a batch, each in the shape of its logprobs."""
    parts = torch.split(packed, [logprob.numel() for logprob in batch])
    return [part.view_as(logprob) for part, logprob in zip(parts, batch, strict=True)]


def mean_metrics(metrics: Sequence[Mapping[str, float]], shares: Sequence[float]) -> dict[str, float]:
    """Average the metrics of a step's batches, each over the batches that have it."""
    means = {}
    for name in dict.fromkeys(name for of_batch in metrics for name in of_batch):
        present = [(share, of[name]) for share, of in zip(shares, metrics, strict=True) if name in of]
        means[name] = sum(share * value for share, value in present) / sum(share for share, _ in present)
    return means


class KnownGradients(torch.autograd.Function):
    """A scalar whose gradients are already known: `backward` returns them."""

    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, gradients: list[torch.Tensor], *_: torch.Tensor
    ) -> torch.Tensor:
        """Keep the gradients, one per logprob tensor, and return the value."""
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *scale: Any) -> Any:
        """Return each logprob tensor's gradient, times that of the value."""
        if scale[0] == 1:  # the common case; saves one multiplication per datum
            return None, None, *ctx.gradients
        return None, None, *(gradient * scale[0] for gradient in ctx.gradients)


def with_gradients(
    value: torch.Tensor, gradients: list[torch.Tensor], logprobs: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return the value as a scalar with these gradients for the logprobs, and no other history."""
    scalar: torch.Tensor = KnownGradients.apply(value.detach(), gradients, *logprobs)  # type: ignore[no-untyped-call]
    return scalar
