"""Batches of a few tokens, for numbers worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mint_train import attach
from mint_train.batches.batch import Batch
from mint_train.batches.datums import build_datum
from mint_train.batches.groups import Group
from mint_train.errors import Source

PROMPT = [1, 2]
UNTRAINED = -9.0
"""The logprob of the prompt's one target token, which no loss may look at."""


def make_group(
    completions: Sequence[Sequence[int]],
    attached: Sequence[Mapping[str, Any]] | None = None,
    reference: Sequence[Sequence[float]] | None = None,
    prompt: Sequence[int] = PROMPT,
) -> Group:
    """Make a group of completions by their token ids, with the reference's logprobs of those tokens."""
    datums = [build_datum(prompt, completion, None) for completion in completions]
    values = attached or [{} for _ in completions]
    group = Group.of(
        [attach(datum, **own) for datum, own in zip(datums, values, strict=True)], Source("rows", 1)
    )
    if reference is None:
        return group
    return Group(group.datums, group.source, group.attached, tuple(make_logprobs(reference)))


def make_batch(*groups: Group) -> Batch:
    """Make a batch whose attached values are float64."""
    return Batch(groups, attached_dtype=torch.float64)


def make_logprobs(completions: Sequence[Sequence[float]]) -> list[torch.Tensor]:
    """Give each completion's tokens their logprobs, float64, and the prompt's target one of no meaning."""
    return [
        torch.tensor([UNTRAINED, *values], dtype=torch.float64).requires_grad_() for values in completions
    ]


def read_losses(folder: Path) -> list[float]:
    """Read the loss of each step of a run."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["metrics"]["loss"] for line in lines]
