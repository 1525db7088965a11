"""Batches of sampled completions for the tests, and losses written a second time, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mint_train.batches.batch import Batch
from mint_train.testing import make_batch, make_group, make_logprobs

Floats = Sequence[float]


@dataclass(frozen=True)
class Sampled:
    """One sampled completion: logprobs of its tokens, nats."""

    policy: Floats
    old: Floats
    reference: Floats
    reward: float


def random_groups(seed: int = 4, sizes: Sequence[int] = (3, 2, 4)) -> list[list[Sampled]]:
    """Draw groups whose ratios lie around 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int, low: float, high: float) -> list[float]:
        drawn: list[float] = (
            low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)
        ).tolist()
        return drawn

    groups = []
    for size in sizes:
        group = []
        for _ in range(size):
            length = int(torch.randint(1, 6, (), generator=generator))
            old = draw(length, -3, -0.6)
            policy = [one + by for one, by in zip(old, draw(length, -0.5, 0.5), strict=True)]
            reference = [one + by for one, by in zip(old, draw(length, -0.4, 0.4), strict=True)]
            group.append(Sampled(policy, old, reference, draw(1, -1, 1)[0]))
        groups.append(group)
    return groups


def batch_of(
    groups: Sequence[Sequence[Sampled]], **changed: float | None
) -> tuple[Batch, list[torch.Tensor]]:
    """Make the batch of some groups, and the policy's logprobs of it."""
    made, policy, token = [], [], 3
    for group in groups:
        ids = []
        for sample in group:
            ids.append(list(range(token, token + len(sample.policy))))
            token += len(sample.policy)
        attached: list[dict[str, Any]] = [
            {
                "advantage": 0.0,
                "reward": sample.reward,
                "scored": 1.0,
                "count": float(len(group)),
                "old_logprobs": [0.0, *sample.old],
                **changed,
            }
            for sample in group
        ]
        attached = [{name: value for name, value in one.items() if value is not None} for one in attached]
        made.append(make_group(ids, attached, [list(sample.reference) for sample in group]))
        policy += [list(sample.policy) for sample in group]
    return make_batch(*made), make_logprobs(policy)


def group_advantages(rewards: Floats) -> list[float]:
    """GRPO's, as TRL has them."""
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1))
    return [(reward - mean) / (deviation + 1e-4) for reward in rewards]


def centred(rewards: Floats) -> list[float]:
    """Dr. GRPO's."""
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def leave_one_out(rewards: Floats) -> list[float]:
    """RLOO's."""
    return [own - (sum(rewards) - own) / (len(rewards) - 1) for own in rewards]


def raw(rewards: Floats) -> list[float]:
    return list(rewards)
