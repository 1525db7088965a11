"""Pack token sequences without padding; a prefix that several sequences share is computed once.

A pack is one row of tokens, divided into segments. The first sequence is one segment. A later sequence
that starts like its predecessor adds a segment with only the tokens that differ, and that segment lists
the earlier rows that it continues (its context). Packing compares tokens and knows nothing of pairs or
rankings. Prefix sharing follows arXiv 2410.20305, extended to any number of branches.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch

MIN_SHARED_TOKENS = 16
"""Shorter shared prefixes are computed twice, which is cheaper than one more attention call."""


@dataclass(frozen=True)
class TokenSequence:
    """One sequence to score.

    Attributes:
        input_tokens: int64 ``[length]``.
        target_tokens: int64 ``[length]``; ``target_tokens[i]`` follows ``input_tokens[i]``.
        loss_mask: bool ``[length]``; True where the datum's weight is not 0.
    """

    input_tokens: torch.Tensor
    target_tokens: torch.Tensor
    loss_mask: torch.Tensor

    def __post_init__(self) -> None:
        shapes = {tuple(t.shape) for t in (self.input_tokens, self.target_tokens, self.loss_mask)}
        if len(shapes) != 1 or self.input_tokens.dim() != 1:
            raise ValueError(f"a sequence needs three tensors of one length, got shapes {sorted(shapes)}")


@dataclass(frozen=True)
class Segment:
    """Consecutive rows ``start:stop`` of a pack that continue the row ranges in ``context``, in order."""

    start: int
    stop: int
    context: tuple[tuple[int, int], ...] = ()

    @property
    def context_length(self) -> int:
        """Number of tokens before the segment."""
        return sum(stop - start for start, stop in self.context)


@dataclass(frozen=True)
class Member:
    """Where one sequence's logprobs are in a pack's: ``flat[offset + j]`` belongs at ``positions[j]``."""

    index: int
    positions: torch.Tensor
    offset: int


@dataclass(frozen=True)
class Pack:
    """One forward pass.

    Attributes:
        input_ids, position_ids: int64 ``[rows]``.
        segments: cover all rows without gaps or overlaps.
        lookup_rows, lookup_targets: int64 ``[lookups]``; a row and the target that its hidden state predicts.
        members: the pack's sequences and their lookups.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segments: tuple[Segment, ...]
    lookup_rows: torch.Tensor
    lookup_targets: torch.Tensor
    members: tuple[Member, ...]

    @property
    def rows(self) -> int:
        """Number of tokens in the forward pass."""
        return int(self.input_ids.numel())

    @property
    def longest(self) -> int:
        """Length of the longest sequence in tokens: the furthest that attention reaches."""
        return max(segment.context_length + segment.stop - segment.start for segment in self.segments)


@dataclass(frozen=True)
class _Entry:
    """A sequence cut after its last trained token; it shares `shared` tokens with the previous entry."""

    index: int
    tokens: torch.Tensor
    shared: int

    @property
    def new_rows(self) -> int:
        return len(self.tokens) - self.shared


def plan_packs(
    sequences: Sequence[TokenSequence], rows_per_pack: int, *, min_shared: int = MIN_SHARED_TOKENS
) -> list[Pack]:
    """Divide sequences into packs of at most `rows_per_pack` rows.

    A longer sequence gets its own pack; a sequence without trained tokens is in none. Sequences that share
    a prefix stay together where they fit. The result depends only on the sequences and their order.
    """
    packs: list[Pack] = []
    current: list[_Entry] = []
    used = 0
    for group in _groups(_sorted_entries(sequences, min_shared)):
        if used + sum(entry.new_rows for entry in group) > rows_per_pack and current:
            packs.append(_build(current, sequences))
            current, used = [], 0
        for entry in group:
            if current and used + entry.new_rows > rows_per_pack:
                packs.append(_build(current, sequences))
                current, used = [], 0
            if not current:
                entry = _Entry(entry.index, entry.tokens, 0)
            current.append(entry)
            used += entry.new_rows
    if current:
        packs.append(_build(current, sequences))
    return packs


def divide_sequences(
    sequences: Sequence[TokenSequence], parts: int, *, min_shared: int = MIN_SHARED_TOKENS
) -> list[list[int]]:
    """Divide sequences into parts that are packed apart, so that the largest has as few rows as possible.

    Sequences that share a prefix are parted only where that makes the largest part smaller.

    Returns:
        the indices of each part, of which the last ones may have none.
    """
    entries = _sorted_entries(sequences, min_shared)

    def divided(most_rows: int) -> list[list[int]]:
        found: list[list[int]] = []
        rows = most_rows
        for entry in entries:
            rows += entry.new_rows
            if rows > most_rows:
                found.append([])
                rows = len(entry.tokens)  # it computes the whole prefix
            found[-1].append(entry.index)
        return found

    fewest = max((len(entry.tokens) for entry in entries), default=0)
    enough = range(fewest, sum(entry.new_rows for entry in entries) + 1)
    fits = bisect_left(enough, True, key=lambda most_rows: len(divided(most_rows)) <= parts)
    found = divided(enough[fits]) if entries else []
    found += [[] for _ in range(parts - len(found))]
    scored = {entry.index for entry in entries}
    found[0] += [index for index in range(len(sequences)) if index not in scored]
    return [sorted(indices) for indices in found]


def _sorted_entries(sequences: Sequence[TokenSequence], min_shared: int) -> list[_Entry]:
    cut: list[tuple[list[int], int]] = []
    for index, sequence in enumerate(sequences):
        trained = sequence.loss_mask.nonzero()
        if len(trained):
            # Tokens after the last trained one affect no logprob.
            cut.append((sequence.input_tokens[: int(trained[-1]) + 1].tolist(), index))
    # In sorted order a sequence shares its longest prefix with a neighbour. The longer sequence comes
    # first, so that a sequence which is a prefix of another adds no rows.
    cut.sort(key=lambda item: item[0], reverse=True)
    entries: list[_Entry] = []
    previous = torch.empty(0, dtype=torch.int64)
    for tokens, index in cut:
        here = torch.tensor(tokens, dtype=torch.int64)
        shared = _common_length(previous, here)
        entries.append(_Entry(index, here, shared if shared >= min(min_shared, len(here)) else 0))
        previous = here
    return entries


def _common_length(left: torch.Tensor, right: torch.Tensor) -> int:
    length = min(len(left), len(right))
    differing = (left[:length] != right[:length]).nonzero()
    return int(differing[0]) if len(differing) else length


def _groups(entries: Sequence[_Entry]) -> list[list[_Entry]]:
    groups: list[list[_Entry]] = []
    for entry in entries:
        if entry.shared and groups:
            groups[-1].append(entry)
        else:
            groups.append([entry])
    return groups


def _build(entries: Sequence[_Entry], sequences: Sequence[TokenSequence]) -> Pack:
    segments: list[Segment] = []
    tokens: list[torch.Tensor] = []
    positions: list[torch.Tensor] = []
    lookups: list[tuple[torch.Tensor, torch.Tensor]] = []
    members: list[Member] = []
    path: tuple[tuple[int, int], ...] = ()
    rows = offset = 0
    for entry in entries:
        context = _first_rows(path, entry.shared)
        stop = rows + entry.new_rows
        if entry.new_rows:
            segments.append(Segment(rows, stop, context))
            tokens.append(entry.tokens[entry.shared :])
            positions.append(torch.arange(entry.shared, len(entry.tokens)))
        path = (*context, (rows, stop))
        rows = stop
        sequence = sequences[entry.index]
        trained = sequence.loss_mask.nonzero().squeeze(-1)
        row_of = torch.cat([torch.arange(start, end) for start, end in path])
        lookups.append((row_of[trained], sequence.target_tokens[trained]))
        members.append(Member(entry.index, trained, offset))
        offset += len(trained)
    return Pack(
        input_ids=torch.cat(tokens),
        position_ids=torch.cat(positions),
        segments=tuple(segments),
        lookup_rows=torch.cat([row for row, _ in lookups]),
        lookup_targets=torch.cat([target for _, target in lookups]),
        members=tuple(members),
    )


def _first_rows(path: tuple[tuple[int, int], ...], count: int) -> tuple[tuple[int, int], ...]:
    """Return the ranges that hold the first `count` tokens of a path."""
    ranges: list[tuple[int, int]] = []
    for start, stop in path:
        if count <= 0:
            break
        taken = min(count, stop - start)
        if taken:
            ranges.append((start, start + taken))
        count -= taken
    return tuple(ranges)
