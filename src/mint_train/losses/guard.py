"""The guard around a loss's mathematics: it refuses what would train nothing, or break the model."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import torch

from mint_train.batches.batch import Batch
from mint_train.batches.logprobs import PackedLogprobs, concatenate
from mint_train.errors import LossError, Source, counted
from mint_train.plugins.returned import shown

ROUNDING = 1e-5
"""How far two float32 gradients of a linear loss may be apart, relative to the largest."""
RESERVED = frozenset(
    {"loss", "step", "learning_rate", "tokens", "seconds", "tokens_per_second", "sample_score"}
)
"""Names that no metric of a plugin can have: the run records, shows or tracks figures of its own by them."""


def loss_and_metrics(loss: str, result: object) -> tuple[Any, Mapping[Any, Any]]:
    """Return the loss and the metrics of what `compute_loss` returned: both, or the loss alone.

    Raises:
        LossError: it is something else.
    """
    if not isinstance(result, tuple):
        return result, {}
    if len(result) != 2 or not isinstance(result[1], Mapping):
        kinds = ", ".join(type(part).__name__ for part in result)
        raise LossError(
            f'the loss "{loss}" returned ({kinds}): return the loss alone, or with its metrics by name'
        )
    return result


def check_scalar(loss: str, value: object) -> None:
    """Refuse a value that is not a scalar tensor, or that has lost its graph.

    Raises:
        LossError: saying what it is instead, and how to fix it.
    """
    if not isinstance(value, torch.Tensor):
        raise LossError(
            f'the loss "{loss}" returned a {type(value).__name__} where a scalar tensor is needed: '
            "keep the logprobs as tensors, without float() or .tolist()"
        )
    if value.dim() != 0:
        raise LossError(
            f'the loss "{loss}" returned a tensor of shape {list(value.shape)} where a scalar is needed: '
            "take its mean or sum"
        )
    if not value.is_floating_point():
        raise LossError(f'the loss "{loss}" returned a tensor of {value.dtype} where a real number is needed')
    if not value.requires_grad:
        raise LossError(
            f'the loss "{loss}" is detached from the logprobs, so nothing would be trained: '
            "compute it from the logprob tensors, without .tolist(), float(), .item() or .detach()"
        )


def check_metric_names(loss: str, metrics: Mapping[Any, Any], reserved: Collection[str] = RESERVED) -> None:
    """Refuse a metric that would replace a figure of the run.

    Args:
        loss: the loss's name.
        metrics: its metrics by name.
        reserved: the names of such figures.

    Raises:
        LossError: naming the metric.
    """
    for name in metrics:
        if name in reserved:
            raise LossError(
                f'the loss "{loss}" has a metric called {name!r}, which is a figure of the run\'s own; '
                "give it another name"
            )


def finite_metrics(loss: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as plain floats.

    Raises:
        LossError: one is not a finite number, or its name is not text.
    """
    plain: dict[str, float] = {}
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise LossError(f'the loss "{loss}" has a metric called {name!r}; give it a name of text')
        try:
            plain[name] = float(value)
        except Exception as error:
            problem = f"is not a number but {shown(value)}"
            raise LossError(f'the metric "{name}" of the loss "{loss}" {problem}') from error
        if not math.isfinite(plain[name]):
            raise LossError(f'the metric "{name}" of the loss "{loss}" is {plain[name]}')
    return plain


def check_state(loss: str, state: Mapping[str, Any]) -> None:
    """Refuse a state that a checkpoint could not hold.

    Raises:
        LossError: a name is not text, or a value is not a finite number.
    """
    for name, value in state.items():
        number = isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
        if not isinstance(name, str) or not number:
            problem = f"keeps {shown(value)} as its state {name!r}"
            raise LossError(f'the loss "{loss}" {problem}; keep finite floats by name')


def check_total_weight(batch: Batch) -> None:
    """Refuse a batch whose rows all weigh nothing, which has no mean.

    Raises:
        LossError: naming the file and line of its first group.
    """
    if batch.total_weight == 0:
        raise LossError(nothing_to_average([group.source for group in batch.groups]))


def nothing_to_average(sources: Sequence[Source]) -> str:
    """Say that the rows of a batch weigh nothing, by where they come from."""
    others = (
        f" and {counted(len(sources) - 1, 'other row')} of its batch have" if len(sources) > 1 else " has"
    )
    return (
        f"{sources[0]}{others} the weight 0, so there is nothing to average: "
        "raise --batch-size, or leave such rows out of the data"
    )


def check_weights_were_read(loss: str, batch: Batch) -> None:
    """Refuse rows that carry a weight where the loss has not asked for it, and so ignores it.

    Raises:
        LossError: naming the file and line of the first such row, and both ways out.
    """
    if batch.carries_weights and not batch.weights_were_read:
        source = next(group.source for group in batch.groups if group.weight != 1.0)
        raise LossError(
            f'{source}: the row has a weight, and the loss "{loss}" does not use it: average with batch.mean '
            "in the loss, or leave the column out with --columns weight="
        )


def check_batch_untouched(loss: str, batch: Batch) -> None:
    """Refuse a loss that wrote over what its batch holds, which other terms and the gradient read too.

    Raises:
        LossError: naming what was changed.
    """
    fresh = Batch(batch.groups)
    # a loss may keep something of its own there
    held = {
        name: value
        for name, value in vars(batch).items()
        if isinstance(value, torch.Tensor) and hasattr(Batch, name)
    }
    changed = [
        f"batch.{name}"
        for name, value in held.items()
        if not np.array_equal(value.detach(), getattr(fresh, name).detach(), equal_nan=True)
    ]
    # a group keeps its sums from epoch to epoch, so that there is nothing to compare them with
    sums = [vars(group).get("reference_sums") for group in batch.groups]
    if any(one is not None and not one.is_inference() and one._version for one in sums):
        changed.append("the reference_sums of its groups")
    if changed:
        raise LossError(
            f'the loss "{loss}" changes {changed[0]}, which others read too: compute new tensors, and leave '
            "in-place operations on it alone"
        )


def check_logprobs(batch: Batch, logprobs: Sequence[torch.Tensor], kinds: int = 1) -> None:
    """Refuse logprobs from the model that are not finite, or do not fit the batch's datums.

    Args:
        batch: the batch.
        logprobs: a tensor per datum, and behind them as many again for each value over the vocabulary.
        kinds: 1, and 1 more for each value over the vocabulary.

    Raises:
        LossError: naming the file and line of the group.
    """
    lengths = batch.lengths.tolist() * kinds
    if [logprob.numel() for logprob in logprobs] != lengths:
        raise LossError("the backend returned logprobs that do not fit the batch's target tokens")
    if not all_finite(logprobs):
        for logprob, source in zip(logprobs, datum_sources(batch) * kinds, strict=True):
            if not torch.isfinite(logprob).all():
                raise LossError(f"the model's logprobs are not finite at {source}")


def check_untouched(
    loss: str,
    used: PackedLogprobs,
    logprobs: Sequence[torch.Tensor],
    vocabulary: Mapping[str, Sequence[torch.Tensor]],
) -> None:
    """Refuse a loss that changed what it was given, as its gradient would be that of other numbers.

    Args:
        loss: the loss's name.
        used: what the loss was given.
        logprobs: the tensors that the list was made of.
        vocabulary: the tensors that each value over the vocabulary was made of.

    Raises:
        LossError: an entry of the list was replaced, a number was written over, or a hook was registered.
    """
    same_list = len(used) == len(logprobs) and all(map(operator.is_, used, logprobs))
    pairs = [(used.packed, logprobs), *((used.vocabulary[name], vocabulary[name]) for name in vocabulary)]
    # torch has no public way to ask for hooks
    hooked = any(tensor._backward_hooks for tensor in (*used, used.packed, *used.vocabulary.values()))
    with torch.no_grad():
        same_numbers = all(torch.equal(packed, concatenate(tensors)) for packed, tensors in pairs)
    if same_list and same_numbers and not hooked:
        return
    raise LossError(
        f'the loss "{loss}" changes the logprobs that it is given, so it would train on other numbers: '
        "compute new tensors, and leave the list, .data, hooks and in-place operations alone"
    )


def check_gradients(loss: str, batch: Batch, gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    """Refuse a gradient that is missing or not finite.

    Raises:
        LossError: naming the file and line of the datum's group.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    if len(present) < len(gradients):
        position = next(index for index, gradient in enumerate(gradients) if gradient is None)
        raise LossError(
            f'the loss "{loss}" does not depend on the logprobs of datum {position} '
            f"({datum_sources(batch)[position]}): they were detached or left out; compute it from the "
            "logprob tensors of all datums"
        )
    if not all_finite(present):
        for gradient, source in zip(present, cycle(datum_sources(batch)), strict=False):
            if not torch.isfinite(gradient).all():
                raise LossError(f'the gradient of the loss "{loss}" is not finite at {source}')
    return present


def check_linear(
    loss: str, known: Sequence[torch.Tensor], found: Sequence[torch.Tensor], state: Mapping[str, float]
) -> None:
    """Refuse a loss that calls itself linear in the logprobs, and is not.

    Args:
        loss: the loss's name.
        known: its gradients with other logprobs, which the model was differentiated with.
        found: its gradients with the real logprobs.
        state: what it keeps now; it kept nothing before.

    Raises:
        LossError: the gradients differ by more than rounding, or the loss has begun to keep a state.
    """
    sent, real = (torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (known, found))
    problem = ""
    if state:
        problem = f"keeps {', '.join(state)} as state"
    elif not torch.allclose(sent, real, rtol=ROUNDING, atol=ROUNDING * float(real.abs().max())):
        problem = "its gradient changes with the logprobs"
    if problem:
        raise LossError(f'the loss "{loss}" has the trait LINEAR, but {problem}: leave the trait out')


def all_finite(tensors: Sequence[torch.Tensor]) -> bool:
    """Return whether all numbers of one-dimensional tensors are finite."""
    with torch.no_grad():  # building a graph of thousands of tensors would cost more than their sum
        return bool(torch.isfinite(torch.cat(list(tensors)).sum()))


def datum_sources(batch: Batch) -> list[str]:
    """Return, per datum, the file and line of its group."""
    return [str(group.source) for group in batch.groups for _ in group.datums]
