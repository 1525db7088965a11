"""The material of the conformance checks: a loss with its rows, examples, groups and random logprobs."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mint_train.backends.local.starter_model import make_starter_tokenizer
from mint_train.batches.batch import Batch
from mint_train.batches.groups import Group
from mint_train.batches.vocabulary import QUANTITIES
from mint_train.errors import RowError, Source
from mint_train.losses.loss import Loss
from mint_train.rendering.renderer import Renderer
from mint_train.rows.readers import read_rows
from mint_train.rows.row import Row
from mint_train.rows.row_weights import split_weight

SEED = 20240607
MOST_GROUPS = 8

Logprobs = list[torch.Tensor]


class ConformanceError(AssertionError):
    """A loss does not do what a check requires; the message says what it did instead."""


def require_that(holds: bool, problem: str) -> None:
    """Fail the check where something does not hold.

    Raises:
        ConformanceError: with the problem.
    """
    if not holds:
        raise ConformanceError(problem)


@cache
def small_tokenizer() -> PreTrainedTokenizerBase:
    """Make the starter model's tokenizer once; no check needs a model."""
    tokenizer: PreTrainedTokenizerBase = make_starter_tokenizer()
    return tokenizer


@dataclass
class Material:
    """A loss under examination. Everything random comes from a fixed seed."""

    loss: Loss
    given_rows: Sequence[Mapping[str, Any]] | None = None
    tokenizer: PreTrainedTokenizerBase = field(default_factory=small_tokenizer)

    @cached_property
    def rows(self) -> list[Row]:
        """The rows given, else the loss's bundled ones."""
        if self.given_rows is not None:
            return [
                Row(dict(split_weight(row)[1]), Source("given rows", line))
                for line, row in enumerate(self.given_rows, start=1)
            ]
        path = self.loss.bundled_rows
        if path is None:
            raise ConformanceError("the loss bundles no rows: implement bundled_rows, or give rows")
        return read_rows(path)

    @cached_property
    def examples(self) -> list[Any]:
        """The rows, read and linked to one another."""
        related = list(self.loss.link_examples([self.read(row) for row in self.rows]))
        problem = f"link_examples returned {len(related)} of {len(self.rows)} examples: return each, in order"
        require_that(len(related) == len(self.rows), problem)
        return related

    def read(self, row: Row) -> Any:
        """Read a row as the loss's example.

        Raises:
            ConformanceError: the row is bundled, and does not suit a loss that inherits it.
            RowError: the row is a given one.
        """
        try:
            return self.loss.parse_row(row.values)
        except RowError as error:
            if self.given_rows is not None:
                raise
            base = self.loss.terms[0].chain[0].name
            problem = f"{row.source}: {error}; these rows are bundled with {base}: give your own with --data"
            raise ConformanceError(problem) from error

    @cached_property
    def groups(self) -> list[Group]:
        """The first few examples as groups, with reference logprobs where the loss asks for a reference."""
        # a seed other than that of the policy's logprobs, or all log-ratios would be zero
        generator = make_generator(SEED + 1)
        renderer = Renderer(self.tokenizer)
        groups = []
        for example, row in zip(self.examples[:MOST_GROUPS], self.rows, strict=False):
            group = Group.of(self.loss.flatten(example, renderer), row.source)
            if self.loss.reference is not None:
                reference = tuple(random_logprobs(length, generator) for length in group.lengths)
                group = replace(group, reference_logprobs=reference)
            groups.append(group)
        return groups

    def batch(self, groups: Sequence[Group] | None = None, dtype: torch.dtype = torch.float64) -> Batch:
        """Make a batch of the groups, its reference logprobs in one dtype."""
        made = [in_dtype(group, dtype) for group in (self.groups if groups is None else groups)]
        return Batch(made)

    def logprobs(self, spread: float = 3.0, seed: int = SEED) -> Logprobs:
        """Draw logprobs for all datums, float64, requiring grad; a fresh copy at each call."""
        generator = make_generator(seed)
        lengths = [length for group in self.groups for length in group.lengths]
        return [random_logprobs(length, generator, spread).requires_grad_() for length in lengths]

    def logprobs_by_group(self) -> list[Logprobs]:
        """Draw logprobs for all datums, those of each group together."""
        drawn = iter(self.logprobs())
        return [[next(drawn) for _ in group.datums] for group in self.groups]

    def evaluate(self, batch: Batch, logprobs: Logprobs) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """Compute loss and raw metrics from a fresh state."""
        return self.loss.evaluate(batch, logprobs, {}, self.vocabulary(batch))

    def vocabulary(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Draw what the loss needs of the vocabulary, float64 `[tokens]`: the same for a row in any batch."""
        drawn: dict[str, list[torch.Tensor]] = {name: [] for name in self.loss.vocabulary}
        for group in batch.groups:
            generator = make_generator(SEED + 2 + (group.source.line or 0))
            for name, values in drawn.items():
                share = torch.rand(sum(group.lengths), generator=generator, dtype=torch.float64)
                size = 0.02 + 0.96 * share  # a share of something is below 1
                values.append(-size if QUANTITIES[name].negative else size)
        return {name: torch.cat(values).requires_grad_() for name, values in drawn.items()}

    def gradients(self, batch: Batch, logprobs: Logprobs) -> Logprobs:
        """Differentiate the loss by each datum's logprobs; zeros where it does not depend on them."""
        value, _ = self.evaluate(batch, logprobs)
        return gradients_or_zeros(value, logprobs)

    @cached_property
    def trained(self) -> list[torch.Tensor]:
        """Per datum, which of its target tokens the loss trains, bool; see UNTRAINED_DATUMS."""
        untrained = self.loss.untrained_datums
        return [
            torch.from_numpy(weights != 0) & (position not in untrained)
            for group in self.groups
            for position, weights in enumerate(group.weights)
        ]

    def has_trait(self, name: str) -> bool:
        """Return whether any term of the loss has a trait."""
        return any(term.trait(name) for term in self.loss.terms)

    def describe_datum(self, number: int) -> str:
        """Name a datum of the batch by its group's row and its position in the group."""
        for group in self.groups:
            if number < len(group.datums):
                return f"datum {number} of the group at {group.source}"
            number -= len(group.datums)
        return f"datum {number}"


def gradients_or_zeros(value: torch.Tensor, leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Differentiate a value by each tensor; zeros where it does not depend on it."""
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, found, strict=True)
    ]


def in_dtype(group: Group, dtype: torch.dtype) -> Group:
    """Copy a group with its reference logprobs in another dtype."""
    if group.reference_logprobs is None:
        return group
    return replace(group, reference_logprobs=tuple(values.to(dtype) for values in group.reference_logprobs))


def make_generator(seed: int = SEED) -> torch.Generator:
    """Make a torch generator that does not touch the global one."""
    return torch.Generator().manual_seed(seed)


def random_logprobs(length: int, generator: torch.Generator, spread: float = 3.0) -> torch.Tensor:
    """Draw logprobs between -spread and just below 0, float64 `[length]`."""
    return -spread * (0.02 + 0.98 * torch.rand(length, generator=generator, dtype=torch.float64))


def shuffled(count: int) -> list[int]:
    """Return a shuffled order of `count` things, never the sorted one where there is more than one."""
    order = list(range(count))
    random.Random(SEED).shuffle(order)  # noqa: S311 - an order, not a secret
    return order if order != sorted(order) else order[::-1]


def mutated(row: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Copy a row deeply, with one field set to another value."""
    copy: dict[str, Any] = json.loads(json.dumps(dict(row)))
    return copy | {name: value}
