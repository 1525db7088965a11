"""Evaluation on held-out groups: the loss's own metrics with confidence intervals; nothing is changed.

Only the loss knows what a metric means. A metric that is a mean over groups is computed group by group, which
gives it an interval and a value per row; one that is not (a loss over whole batches, such as KTO with its
baseline) is averaged over batches of the run's size.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice

import torch

from mint_train.backends.base import TrainingClient
from mint_train.backends.forward_logprobs import LOGPROBS, forward_values
from mint_train.batches.batch import Batch
from mint_train.batches.groups import Groups
from mint_train.batches.vocabulary import Vocabulary
from mint_train.errors import ContractError, LossError, Source
from mint_train.losses.loss import Loss, each_group
from mint_train.run_folder.records import Evaluation
from mint_train.run_folder.token_counts import Sent, uncounted
from mint_train.training.intervals import confidence_interval, weighted_mean

TOLERANCE = 1e-6
"""How far float32 sums in two orders may differ, relative to what was summed."""
PROBED = ((0.25, 1.0), (1.0, 2.0), (0.25, 2.0), (0.25, 2.0))
"""By what logprobs are multiplied to see which metrics are means over groups."""

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Measured:
    """The loss's metrics of a batch of held-out groups, and of each of its groups alone."""

    sources: Sequence[Source]
    """The file and line of each group."""
    metrics: Metrics
    by_group: Sequence[Metrics]
    weights: Sequence[float]
    """What each group counts in the mean of a loss."""

    def weighted(self, name: str, *, by_row: bool) -> tuple[list[float], list[float]]:
        """Return a metric of each group that has it, and what each counts: its row's weight, or 1."""
        having = [index for index, own in enumerate(self.by_group) if name in own]
        weights = [self.weights[index] if by_row else 1.0 for index in having]
        return [self.by_group[index][name] for index in having], weights

    @property
    def size(self) -> float:
        """The weights of the groups together."""
        return math.fsum(self.weights)


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Held-out groups, and the loss that evaluates the policy on them."""

    loss: Loss
    groups: Groups
    batch_size: int
    """Groups per batch, for metrics that can only be computed over batches."""
    name: str = ""
    """The name of the held-out set."""
    probes: list[Measured] = field(default_factory=list)
    """Metrics of other logprobs, once the first evaluation has computed them."""

    def evaluate(
        self, client: TrainingClient, step: int, state: Mapping[str, float], sent: Sent = uncounted
    ) -> Evaluation:
        """Evaluate the current policy; neither it nor the loss's state changes.

        Args:
            client: the policy.
            step: the optimiser steps that it has taken.
            state: the loss's own state.
            sent: is told the tokens of each request.

        Raises:
            LossError: the loss fails on a batch, or it or a metric of a batch is not finite.
            BackendError: the forward fails.
        """
        datums = (datum for group in self.groups for datum in group.datums)
        asked = self.loss.vocabulary
        outputs = forward_values(datums, client, asked, sent=sent)
        measured: list[Measured] = []
        for start in range(0, len(self.groups), self.batch_size):
            batch = Batch(self.groups[start : start + self.batch_size])
            # the guard rejects detached losses, so pass logprobs that require grad
            given = list(islice(outputs, len(batch.data)))
            own = [values[LOGPROBS].requires_grad_() for values in given]
            vocabulary = {name: torch.cat([values[name] for values in given]) for name in asked}
            measured.append(self.measure(batch, own, state, vocabulary))
            self.probes.extend(() if self.probes else self.probe(batch, own, state, vocabulary))
        shares = {name for name, metric in self.loss.metrics.items() if metric.kind == "share"}
        return replace(summarise(step, measured, shares, self.probes), held_out=self.name)

    def measure(
        self,
        batch: Batch,
        logprobs: Sequence[torch.Tensor],
        state: Mapping[str, float],
        vocabulary: Vocabulary,
    ) -> Measured:
        """Compute the metrics of a batch, and of each of its groups alone."""
        _, metrics = self.loss.compute(batch, logprobs, dict(state), vocabulary)
        sources = [group.source for group in batch.groups]
        weights = [group.weight for group in batch.groups]
        return Measured(sources, metrics, self.measure_groups(batch, logprobs, state, vocabulary), weights)

    def probe(
        self,
        batch: Batch,
        logprobs: Sequence[torch.Tensor],
        state: Mapping[str, float],
        vocabulary: Vocabulary,
    ) -> list[Measured]:
        """Compute the metrics of a batch of several groups whose logprobs are raised, or lowered, at random.

        Before the first step all log-ratios are 0, and any metric looks like a mean over groups. Returns none
        where the loss refuses such logprobs.
        """
        if len(batch.groups) < 2:
            return []
        random, probes = torch.Generator().manual_seed(0), list[Measured]()
        for least, most in PROBED:
            factors = [least + (most - least) * torch.rand(1, generator=random) for _ in logprobs]
            moved = [
                (one.detach() * factor).requires_grad_()
                for one, factor in zip(logprobs, factors, strict=True)
            ]
            with warnings.catch_warnings(), suppress(LossError, ContractError):
                warnings.simplefilter("ignore")
                probes.append(self.measure(batch, moved, state, vocabulary))
        return probes

    def measure_groups(
        self,
        batch: Batch,
        logprobs: Sequence[torch.Tensor],
        state: Mapping[str, float],
        vocabulary: Vocabulary,
    ) -> list[Metrics]:
        """Compute the metrics of each group of a batch alone; none if the loss refuses a single group."""
        measured: list[Metrics] = []
        for group, own, of_group in each_group(batch, logprobs, vocabulary):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # e.g. std of a single value; the batch already warned
                    value, metrics = self.loss.evaluate(Batch([group]), own, dict(state), of_group)
            except (LossError, ContractError):
                measured.append({})
                continue
            numbers = {"loss": float(value.detach())} | {name: float(metrics[name]) for name in metrics}
            measured.append({name: number for name, number in numbers.items() if math.isfinite(number)})
        return measured


def summarise(
    step: int, measured: Sequence[Measured], shares: Set[str], probes: Sequence[Measured] = ()
) -> Evaluation:
    """Average each metric: over groups, with an interval, if it is a mean over groups; else over batches.

    Args:
        step: the optimiser steps that the policy has taken.
        measured: the batches' metrics.
        shares: the metrics that the loss declares as shares of groups.
        probes: metrics of other logprobs, which show too what is a mean over groups.
    """
    shown = [*measured, *probes]
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    by_group: list[str] = []
    for name in dict.fromkeys(name for part in measured for name in part.metrics):
        # most metrics are means over rows; a loss is one over rows that count by their weights
        found = [by_row for by_row in (False, True) if all(is_mean(name, part, by_row) for part in shown)]
        if found:
            parts = [part.weighted(name, by_row=found[0]) for part in measured]
            values, weights = ([number for part in parts for number in part[side]] for side in (0, 1))
            metrics[name] = weighted_mean(values, weights)
            by_group.append(name)
            if len(values) > 1:
                share = is_share(values, name in shares)
                intervals[name] = confidence_interval(values, weights, share=share)
        else:
            having = [part for part in measured if name in part.metrics]
            batch_values = [part.metrics[name] for part in having]
            metrics[name] = weighted_mean(batch_values, [part.size for part in having])
    rows = tuple(
        {"source": found_at(source), "metrics": {name: own[name] for name in by_group if name in own}}
        for part in measured
        for source, own in zip(part.sources, part.by_group, strict=True)
    )
    batch_means = tuple(name for name in metrics if name not in by_group)
    return Evaluation(step, len(rows), metrics, intervals, batch_means, rows)


def found_at(source: Source) -> str:
    """Return where a row stands, its file by the absolute path, so that a resume gives it the same name."""
    if os.path.exists(source.path):
        source = replace(source, path=os.path.abspath(source.path))
    return str(source)


def is_mean(name: str, measured: Measured, by_row: bool) -> bool:
    """Return whether a batch's metric is the mean over its groups that have it, weighted or plain."""
    values, weights = measured.weighted(name, by_row=by_row)
    if not values or name not in measured.metrics:
        return not values and name not in measured.metrics
    if not math.fsum(weights):
        return False
    size = weighted_mean([abs(value) for value in values], weights)
    return abs(weighted_mean(values, weights) - measured.metrics[name]) <= TOLERANCE * max(size, TOLERANCE)


def is_share(values: Sequence[float], declared: bool) -> bool:
    """Return whether a metric counts groups: each value is 0 or 1.

    If all are equal, as in an accuracy of 0.00, the loss's declaration decides: a margin may be 0
    everywhere too.
    """
    return set(values) == {0.0, 1.0} or (declared and set(values) <= {0.0, 1.0})
