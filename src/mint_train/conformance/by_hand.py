"""Batches of a few token ids and their logprobs, for losses worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from mint_train.batches.batch import Batch
from mint_train.batches.datums import attach, build_datum
from mint_train.batches.groups import Group
from mint_train.errors import Source

PROMPT = (1, 2)
MEANINGLESS = -9.0
"""The logprob of the prompt's target tokens, which have weight 0.0: no loss may look at it."""


def make_group(
    completions: Sequence[Sequence[int]],
    attached: Sequence[Mapping[str, Any]] | None = None,
    reference: Sequence[Sequence[float]] | None = None,
    prompt: Sequence[int] = PROMPT,
    weight: float = 1.0,
) -> Group:
    """Make a group of completions of one prompt.

    Args:
        completions: the token ids of each completion.
        attached: what `flatten` would attach to each datum.
        reference: the reference's logprobs of each completion's tokens, nats.
        prompt: the token ids of the prompt.
        weight: what the group counts in its batch's mean.
    """
    datums = [build_datum(prompt, completion, None) for completion in completions]
    values = attached or [{} for _ in completions]
    flattened = [attach(datum, **own) for datum, own in zip(datums, values, strict=True)]
    group = Group.of(flattened, Source("rows", 1), weight)
    if reference is None:
        return group
    return replace(group, reference_logprobs=tuple(make_logprobs(reference, prompt)))


def make_batch(*groups: Group) -> Batch:
    """Make a batch of groups."""
    return Batch(groups)


def make_logprobs(
    completions: Sequence[Sequence[float]], prompt: Sequence[int] = PROMPT
) -> list[torch.Tensor]:
    """Give each completion's tokens their logprobs, and the prompt's target tokens one without meaning.

    Returns:
        Per completion, float64 `[target tokens]`, requiring grad.
    """
    before = [MEANINGLESS] * (len(prompt) - 1)
    return [torch.tensor([*before, *values], dtype=torch.float64).requires_grad_() for values in completions]
