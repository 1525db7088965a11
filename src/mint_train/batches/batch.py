"""A batch: the data of one step, as a loss sees it."""

from __future__ import annotations

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
