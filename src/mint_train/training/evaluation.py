"""Evaluation on held-out groups: the loss's own metrics with confidence intervals; nothing is changed.

Only the loss knows what a metric means. A metric that is a mean over groups is computed group by group, which
gives it an interval and a value per row; one that is not (a loss over whole batches, such as KTO with its
baseline) is averaged over batches of the run's size.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from statistics import NormalDist

import torch

from mint_train.backends.base import TrainingClient
from mint_train.backends.forward_logprobs import forward_logprobs
from mint_train.batches.batch import Batch
from mint_train.batches.groups import Groups
from mint_train.errors import ContractError, LossError, Source
from mint_train.losses.loss import Loss
from mint_train.run_folder.records import Evaluation

CONFIDENCE = 0.95
QUANTILE = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
TOLERANCE = 1e-6
"""How far float32 sums in two orders may differ, relative to what was summed."""

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Measured:
    """The loss's metrics of a batch of held-out groups, and of each of its groups alone."""

    sources: Sequence[Source]
    """The file and line of each group."""
    metrics: Metrics
    by_group: Sequence[Metrics]


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Held-out groups, and the loss that evaluates the policy on them."""

    loss: Loss
    groups: Groups
    batch_size: int
    """Groups per batch, for metrics that can only be computed over batches."""

    def evaluate(self, client: TrainingClient, step: int, state: Mapping[str, float]) -> Evaluation:
        """Evaluate the current policy; neither it nor the loss's state changes.

        Args:
            client: the policy.
            step: the optimiser steps that it has taken.
            state: the loss's own state.

        Raises:
            LossError: the loss fails on a batch, or it or a metric of a batch is not finite.
            BackendError: the forward fails.
        """
        logprobs = forward_logprobs((datum for group in self.groups for datum in group.datums), client)
        measured: list[Measured] = []
        for start in range(0, len(self.groups), self.batch_size):
            batch = Batch(self.groups[start : start + self.batch_size])
            # the guard rejects detached losses, so pass logprobs that require grad
            own = [values.requires_grad_() for values in islice(logprobs, len(batch.data))]
            _, metrics = self.loss.compute(batch, own, dict(state))
            sources = [group.source for group in batch.groups]
            measured.append(Measured(sources, metrics, self.measure_groups(batch, own, state)))
        shares = {name for name, metric in self.loss.metrics.items() if metric.kind == "share"}
        return summarise(step, measured, shares)

    def measure_groups(
        self, batch: Batch, logprobs: Sequence[torch.Tensor], state: Mapping[str, float]
    ) -> list[Metrics]:
        """Compute the metrics of each group of a batch alone; none if the loss refuses a single group."""
        measured: list[Metrics] = []
        start = 0
        for group in batch.groups:
            own = logprobs[start : start + len(group.datums)]
            start += len(group.datums)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # e.g. std of a single value; the batch already warned
                    value, metrics = self.loss.evaluate(Batch([group]), own, dict(state))
            except (LossError, ContractError):
                measured.append({})
                continue
            numbers = {"loss": float(value.detach())} | {name: float(metrics[name]) for name in metrics}
            measured.append({name: number for name, number in numbers.items() if math.isfinite(number)})
        return measured


def summarise(step: int, measured: Sequence[Measured], shares: Set[str]) -> Evaluation:
    """Average each metric: over groups, with an interval, if it is a mean over groups; else over batches.

    Args:
        step: the optimiser steps that the policy has taken.
        measured: the batches' metrics.
        shares: the metrics that the loss declares as shares of groups.
    """
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    by_group: list[str] = []
    for name in dict.fromkeys(name for part in measured for name in part.metrics):
        if all(is_mean(name, part) for part in measured):
            values = [group[name] for part in measured for group in part.by_group if name in group]
            metrics[name] = math.fsum(values) / len(values)
            by_group.append(name)
            if len(values) > 1:
                intervals[name] = confidence_interval(values, share=is_share(values, name in shares))
        else:
            sized = [(part.metrics[name], len(part.by_group)) for part in measured if name in part.metrics]
            metrics[name] = math.fsum(value * size for value, size in sized) / sum(size for _, size in sized)
    rows = tuple(
        {"source": str(source), "metrics": {name: own[name] for name in by_group if name in own}}
        for part in measured
        for source, own in zip(part.sources, part.by_group, strict=True)
    )
    batch_means = tuple(name for name in metrics if name not in by_group)
    return Evaluation(step, len(rows), metrics, intervals, batch_means, rows)


def is_mean(name: str, measured: Measured) -> bool:
    """Return whether a batch's metric is the mean over those of its groups that have it."""
    values = [group[name] for group in measured.by_group if name in group]
    if not values or name not in measured.metrics:
        return not values and name not in measured.metrics
    mean = math.fsum(values) / len(values)
    size = math.fsum(abs(value) for value in values) / len(values)
    return abs(mean - measured.metrics[name]) <= TOLERANCE * max(size, TOLERANCE)


def is_share(values: Sequence[float], declared: bool) -> bool:
    """Return whether a metric counts groups: each value is 0 or 1.

    If all are equal, as in an accuracy of 0.00, the loss's declaration decides: a margin may be 0
    everywhere too.
    """
    return set(values) == {0.0, 1.0} or (declared and set(values) <= {0.0, 1.0})


def confidence_interval(values: Sequence[float], *, share: bool) -> tuple[float, float]:
    """Return the 95 % confidence interval of a mean.

    For a share it is Wilson's score interval (Wilson, 1927), which stays within 0 and 1 and keeps a width
    when all values are equal; otherwise the normal approximation.

    Args:
        values: two or more.
        share: whether each is 0 or 1.
    """
    count = len(values)
    mean = math.fsum(values) / count
    if share:
        shrink = 1 + QUANTILE**2 / count
        centre = (mean + QUANTILE**2 / (2 * count)) / shrink
        half = QUANTILE / shrink * math.sqrt(mean * (1 - mean) / count + QUANTILE**2 / (4 * count**2))
        return max(0.0, centre - half), min(1.0, centre + half)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = QUANTILE * math.sqrt(variance / count)
    return mean - half, mean + half
