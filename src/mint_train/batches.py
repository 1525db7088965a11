"""Groups of datums and the batches made of them: what a loss sees of the data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeAlias, overload

import numpy as np
import torch

from mint_train.datums import ArrayDatum, prompt_length
from mint_train.errors import PluginError, Source
from mint_train.sdk import Datum

Attachment: TypeAlias = float | Sequence[float]
READ_AT_ONCE = 256
"""Groups that are read together where all are."""


@dataclass(frozen=True, slots=True)
class AttachedDatum:
    """A datum with what its loss needs to know of it and the SDK does not carry."""

    datum: Datum
    attached: Mapping[str, Attachment]


def attach(datum: Datum, **values: Attachment) -> AttachedDatum:
    """Attach to a datum what its loss needs: a number, or one number per target token.

    Args:
        datum: the datum.
        values: by name, a float (a label, a score) or a sequence of as many floats as target tokens
            (old logprobs, advantages).
    """
    return AttachedDatum(datum, values)


class DatumArrays(NamedTuple):
    """What a datum holds as lists, as arrays."""

    inputs: np.ndarray
    """int64 `[target tokens]`"""
    targets: np.ndarray
    """int64 `[target tokens]`"""
    weights: np.ndarray
    """float32 `[target tokens]`"""
    prompt_length: int
    """Tokens before the first trained one; all of them where none is trained."""
    trained: int
    """Target tokens of non-zero weight."""

    @classmethod
    def counted(cls, inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> DatumArrays:
        """Count what is trained."""
        return cls(inputs, targets, weights, prompt_length(weights), int(np.count_nonzero(weights)))

    @classmethod
    def of(cls, datum: Datum) -> DatumArrays:
        """Read a datum's lists, where it was not made of arrays."""
        if isinstance(datum, ArrayDatum):
            inputs = datum.inputs
        else:
            inputs = np.asarray(datum.model_input.to_ints(), dtype=np.int64)
        targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
        weights = datum.loss_fn_inputs["weights"].to_numpy().astype(np.float32, copy=False)
        return cls.counted(inputs, targets, weights)

    @property
    def prompt(self) -> np.ndarray:
        """The tokens before the first trained one, int64; all of them where none is trained."""
        return self.inputs[: self.prompt_length]


@dataclass(frozen=True)
class Group:
    """The datums of one example, in the order that its loss's `flatten` gave them."""

    datums: tuple[Datum, ...]
    source: Source
    attached: tuple[Mapping[str, Attachment], ...] = ()
    reference_logprobs: tuple[torch.Tensor, ...] | None = None
    known_arrays: tuple[DatumArrays, ...] | None = field(default=None, repr=False, compare=False)
    """The datums' arrays, where they were made of them: reading long lists again would cost a step dearly."""

    @classmethod
    def of(cls, flattened: Sequence[Datum | AttachedDatum], source: Source) -> Group:
        """Make a group of what a `flatten` hook returned."""
        datums = [item.datum if isinstance(item, AttachedDatum) else item for item in flattened]
        for datum in datums:
            if not isinstance(datum, Datum):
                raise PluginError(
                    f"{source}: flatten returned a {type(datum).__name__} where a Datum is needed; "
                    "build it with mint_train.datums.build_datum"
                )
        attached = [item.attached if isinstance(item, AttachedDatum) else {} for item in flattened]
        return cls(datums=tuple(datums), source=source, attached=tuple(attached))

    @cached_property
    def arrays(self) -> tuple[DatumArrays, ...]:
        """Per datum, its inputs, targets and weights."""
        return self.known_arrays or tuple(DatumArrays.of(datum) for datum in self.datums)

    @property
    def weights(self) -> tuple[np.ndarray, ...]:
        """Per datum, its weights, float32 `[target tokens]`."""
        return tuple([arrays.weights for arrays in self.arrays])

    @property
    def lengths(self) -> tuple[int, ...]:
        """Per datum, its number of target tokens."""
        return tuple([len(arrays.weights) for arrays in self.arrays])

    @cached_property
    def reference_sums(self) -> torch.Tensor | None:
        """The reference's weighted sum of logprobs per datum, `[datums]`: the same in every epoch."""
        if self.reference_logprobs is None:
            return None
        packed = torch.cat(self.reference_logprobs)
        weights = torch.from_numpy(np.concatenate(self.weights)).to(packed)
        # summed as the policy's logprobs are; torch.dot's last bit depends on where its operands lie
        return segment_sums(packed * weights, torch.tensor(self.lengths))

    @property
    def trained_lengths(self) -> tuple[int, ...]:
        """Per datum, its number of target tokens of non-zero weight."""
        return tuple([arrays.trained for arrays in self.arrays])

    @property
    def targets(self) -> tuple[np.ndarray, ...]:
        """Per datum, its target tokens, int64 `[target tokens]`."""
        return tuple([arrays.targets for arrays in self.arrays])

    @property
    def prompts(self) -> tuple[np.ndarray, ...]:
        """Per datum, its tokens before the first trained one, int64; all of them where none is trained."""
        return tuple([arrays.prompt for arrays in self.arrays])


class Groups(Sequence[Group]):
    """The groups of a run, wherever they lie."""

    @abstractmethod
    def take(self, places: Sequence[int]) -> list[Group]:
        """Read groups, in the order of their places: many at once cost less than one after the other."""

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> list[Group]: ...
    def __getitem__(self, index: int | slice) -> Group | list[Group]:
        """Read a group, or a list of them."""
        places = range(len(self))[index]
        return self.take(places) if isinstance(places, range) else self.take([places])[0]

    def __iter__(self) -> Iterator[Group]:
        """Read all groups, a few hundred at a time."""
        for start in range(0, len(self), READ_AT_ONCE):
            yield from self[start : start + READ_AT_ONCE]


class ListedGroups(Groups):
    """Groups that lie in memory."""

    def __init__(self, groups: Sequence[Group] = ()) -> None:
        self._groups = groups

    def __len__(self) -> int:
        return len(self._groups)

    def take(self, places: Sequence[int]) -> list[Group]:
        """Return groups, in the order of their places."""
        return [self._groups[place] for place in places]


@dataclass(frozen=True)
class Batch:
    """The groups of one step. Tensors are packed: the tokens of all datums, one datum after the other."""

    groups: Sequence[Group]
    attached_dtype: torch.dtype = field(default=torch.float32, repr=False)

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
        """Return what `flatten` attached under a name, float32.

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
        return torch.tensor(values, dtype=self.attached_dtype)


def segment_sums(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Sum packed values per segment.

    Args:
        values: floating `[tokens]`.
        lengths: int64 `[segments]`, adding up to `tokens`.

    Returns:
        `[segments]`, of the dtype of `values`.
    """
    return torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)


class PackedLogprobs(list[torch.Tensor]):
    """The logprobs of a batch: a list of a tensor per datum, and one leaf with the same numbers.

    A gradient by one tensor costs a fraction of gradients by thousands.
    """

    def __init__(self, logprobs: Sequence[torch.Tensor]) -> None:
        super().__init__(logprobs)
        self.packed = concatenate([logprob.detach() for logprob in self]).requires_grad_()
        """`[tokens]`, not connected with the tensors of the list."""


def concatenate(logprobs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Put tensors of any shapes behind one another: `[tokens]`."""
    return torch.cat([logprob if logprob.dim() == 1 else logprob.flatten() for logprob in logprobs])


def packed_logprobs(logprobs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate per-datum logprobs in at least float32: `[tokens]`."""
    packed = logprobs.packed if isinstance(logprobs, PackedLogprobs) else concatenate(logprobs)
    return packed if packed.dtype == torch.float64 else packed.float()


def sequence_logprobs(
    logprobs: Sequence[torch.Tensor], batch: Batch, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum each datum's logprobs, weighted: what the papers write as log pi(y | x).

    Args:
        logprobs: per datum, `[target tokens]`, in nats.
        batch: the batch that they belong to.
        weights: floating `[tokens]`, what each token counts instead of the batch's own weights.

    Returns:
        `[datums]`, at least float32, differentiable.
    """
    packed = packed_logprobs(logprobs)
    weights = batch.weights if weights is None else weights
    return segment_sums(packed * weights.to(packed.dtype), batch.lengths)


def mean_logprobs(logprobs: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
    """Average each datum's logprobs over its trained tokens: `sequence_logprobs` by length, `[datums]`."""
    sums = sequence_logprobs(logprobs, batch)
    return sums / batch.trained_tokens.to(sums.dtype)


def needed_reference_logprobs(batch: Batch) -> torch.Tensor:
    """Return the reference's logprobs of a batch's target tokens, packed, float32 `[tokens]`.

    Raises:
        PluginError: the loss asked for no reference, so there is none.
    """
    if batch.reference_logprobs is None:
        raise PluginError(
            "this loss needs reference logprobs, but its reference hook asked for none: "
            "set reference=initial, or return it from the hook"
        )
    return batch.reference_logprobs


def reference_sequence_logprobs(batch: Batch, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Sum the reference's logprobs per datum: log pi_ref(y | x), float32 `[datums]`.

    Args:
        batch: the batch.
        weights: floating `[tokens]`, what each token counts instead of the batch's own weights.

    Raises:
        PluginError: the loss asked for no reference, so there is none.
    """
    if weights is not None:
        return segment_sums(needed_reference_logprobs(batch) * weights, batch.lengths)
    # where a group has no reference, asking for the batch's says so
    sums = [group.reference_sums for group in batch.groups]
    return torch.cat([needed_reference_logprobs(batch) if part is None else part for part in sums])


def log_ratios(logprobs: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
    """Compute log pi(y | x) - log pi_ref(y | x) per datum, nats, `[datums]`.

    Raises:
        PluginError: the loss asked for no reference, so there is none.
    """
    scores = sequence_logprobs(logprobs, batch)
    return scores - reference_sequence_logprobs(batch).to(scores.dtype)
