"""From rewards to advantages: what a completion is worth beside the others of its prompt, or of the batch."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from mint_train.plugin import Batch, segment_sums

ADVANTAGE, REWARD, SCORED = "advantage", "reward", "scored"
"""What `flatten` attaches to each datum: the advantage that its row gives (0 where it gives rewards), its
reward (0 where there is none), and 1.0 where it has a reward."""
SMALLEST_SPREAD = 1e-4

Advantage: TypeAlias = Literal["group", "centre", "leave-one-out", "batch", "raw"]
FROM_REWARDS = "How rewards become advantages: group, centre, leave-one-out, batch or raw."
ALONE: frozenset[Advantage] = frozenset({"raw"})
"""Which of them one completion of a prompt can have; the others compare it with others."""


def advantages(batch: Batch, kind: Advantage) -> torch.Tensor:
    """Return the advantage of each completion: its row's own, or made of the rewards, float64 `[datums]`.

    With r the reward, m and s the mean and the standard deviation (of the sample) in the group:

    - `group`: (r - m) / (s + 1e-4) (GRPO; the 1e-4 is TRL's);
    - `centre`: r - m (Dr. GRPO);
    - `leave-one-out`: r minus the mean of the group's others (RLOO);
    - `batch`: (r - m) / (s of the whole batch + 1e-4);
    - `raw`: r.
    """
    rewards, scored = batch.attached(REWARD), batch.attached(SCORED)
    return batch.attached(ADVANTAGE) + scored * of_rewards(batch, rewards, scored, kind)


def of_rewards(batch: Batch, rewards: torch.Tensor, scored: torch.Tensor, kind: Advantage) -> torch.Tensor:
    """Turn rewards into advantages, `[datums]`; those of rows without rewards have no meaning."""
    sizes = batch.group_sizes
    if kind == "raw":
        return rewards

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.repeat_interleave(sizes)

    centred = rewards - spread(segment_sums(rewards, sizes) / sizes)
    others = (spread(sizes) - 1).clamp(min=1)
    if kind == "leave-one-out":
        return centred * spread(sizes) / others
    if kind == "group":
        return centred / ((spread(segment_sums(centred.square(), sizes)) / others).sqrt() + SMALLEST_SPREAD)
    if kind == "batch":
        # a row of weight 2 counts as two
        counts = scored * spread(batch.group_weights)
        total = counts.sum()
        squares = counts * (rewards - (counts * rewards).sum() / total.clamp(min=1)).square()
        return centred / ((squares.sum() / (total - 1).clamp(min=1)).sqrt() + SMALLEST_SPREAD)
    return centred


def flat_groups(batch: Batch) -> torch.Tensor:
    """Return which groups have rewards that are all equal, so that they train nothing, bool `[groups]`."""
    sizes = batch.group_sizes
    rewards, scored = batch.attached(REWARD), batch.attached(SCORED)
    means = (segment_sums(rewards, sizes) / sizes).repeat_interleave(sizes)
    apart = segment_sums((rewards - means).abs(), sizes)
    return (segment_sums(scored, sizes) > 1) & (apart <= SMALLEST_DIFFERENCE * (1 + means.abs().max()))


SMALLEST_DIFFERENCE = 1e-12
"""Rewards are equal within this, relative to their size: their mean is rounded."""
