"""A batch: the data of one step, as a loss sees it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from mint_train.batches.groups import Group
from mint_train.errors import PluginError
from mint_train.sdk import Datum


@dataclass(frozen=True)
class Batch:
    """The groups of one step. Tensors are packed: the tokens of all datums, one datum after the other."""

    groups: Sequence[Group]

    @cached_property
    def data(self) -> list[Datum]:
        """All datums in order: for pairs `[chosen 0, rejected 0, chosen 1, rejected 1, ...]`."""
        return [datum for group in self.groups for datum in group.datums]

    @cached_property
    def group_sizes(self) -> torch.Tensor:
        """Datums per group, int64 `[groups]`."""
        return torch.tensor([len(group.datums) for group in self.groups])

    @cached_property
    def lengths(self) -> torch.Tensor:
        """Target tokens per datum, int64 `[datums]`."""
        return torch.tensor([length for group in self.groups for length in group.lengths])

    @cached_property
    def group_weights(self) -> torch.Tensor:
        """What each group counts, its row's field `weight`, float64 `[groups]`; 1.0 where a row has none."""
        return torch.tensor([group.weight for group in self.groups], dtype=torch.float64)

    @property
    def weights_were_read(self) -> bool:
        """Whether a loss has asked for `group_weights`, or for a mean, which needs them."""
        return "group_weights" in self.__dict__

    @property
    def total_weight(self) -> float:
        """The sum of the groups' weights: their number where no row has a weight."""
        return math.fsum(group.weight for group in self.groups)

    @cached_property
    def carries_weights(self) -> bool:
        """Whether a row has a weight other than 1."""
        return any(group.weight != 1.0 for group in self.groups)

    def mean(self, values: torch.Tensor, sizes: torch.Tensor | None = None) -> torch.Tensor:
        """Average a value of each group, each counting by its row's weight: sum(w v) / sum(w).

        Where all weights are equal this is the plain mean, to the bit.

        Args:
            values: floating `[groups]`.
            sizes: `[groups]`; the mean is then sum(w v) / sum(w size), as for sums over tokens that are to be
                averaged over all tokens of the batch.

        Raises:
            PluginError: there is not one value per group.
        """
        if len(values) != len(self.groups):
            raise PluginError(
                f"batch.mean needs a value per group: {len(self.groups)} groups, {list(values.shape)} values"
            )
        weights = self.group_weights
        if bool((weights == weights[0]).all()):
            return values.mean() if sizes is None else values.sum() / sizes.sum()
        weights = weights.to(values.dtype)
        return (weights * values).sum() / (weights if sizes is None else weights * sizes).sum()

    @cached_property
    def weights(self) -> torch.Tensor:
        """The datums' weights, packed, float32 `[tokens]`."""
        return torch.from_numpy(
            np.concatenate([arrays.weights for group in self.groups for arrays in group.arrays])
        )

    @cached_property
    def trained_tokens(self) -> torch.Tensor:
        """Target tokens of non-zero weight per datum, int64 `[datums]`."""
        return torch.tensor([length for group in self.groups for length in group.trained_lengths])

    @cached_property
    def reference_logprobs(self) -> torch.Tensor | None:
        """The reference's logprobs of the target tokens, packed, float32 `[tokens]`, or None."""
        parts: list[torch.Tensor] = []
        for group in self.groups:
            if group.reference_logprobs is None:
                return None
            parts.extend(group.reference_logprobs)
        return torch.cat(parts)

    def attached(self, name: str) -> torch.Tensor:
        """Return what `flatten` attached under a name, float64.

        Numbers give `[datums]`, sequences give packed `[tokens]`.

        Raises:
            PluginError: a datum lacks it, or holds another number of values than it has target tokens.
        """
        values: list[float] = []
        for group in self.groups:
            for attached, length in zip(group.attached, group.lengths, strict=True):
                if name not in attached:
                    raise PluginError(
                        f'{group.source}: no "{name}" is attached to a datum; flatten must add it'
                    )
                value = attached[name]
                if isinstance(value, Sequence):
                    if len(value) != length:
                        raise PluginError(
                            f'{group.source}: "{name}" has {len(value)} values for {length} target tokens'
                        )
                    values.extend(value)
                else:
                    values.append(value)
        return torch.tensor(values, dtype=torch.float64)
