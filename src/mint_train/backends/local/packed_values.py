"""Numbers per pack as numbers per sequence, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mint_train.backends.local.packing import Pack, TokenSequence


def spread(packs: list[Pack], flat: list[torch.Tensor], sequences: list[TokenSequence]) -> list[torch.Tensor]:
    """Turn numbers per pack into numbers per sequence: ``[length]``, 0.0 outside the loss mask."""
    dtype = flat[0].dtype if flat else torch.float32
    results = [torch.zeros(len(sequence.input_tokens), dtype=dtype) for sequence in sequences]
    for pack, values in zip(packs, flat, strict=True):
        on_host = values.cpu()
        for member in pack.members:
            share = on_host[member.offset : member.offset + len(member.positions)]
            results[member.index][member.positions] = share
    return results


def spread_all(
    packs: list[Pack],
    scored: Sequence[Sequence[torch.Tensor]],
    sequences: list[TokenSequence],
    kinds: int,
) -> list[torch.Tensor]:
    """Turn what was computed per pack into tensors per sequence: the logprobs, then each other kind."""
    found: list[torch.Tensor] = []
    for kind in range(kinds):
        found += spread(packs, [flats[kind].detach() for flats in scored], sequences)
    return found


def flat_gradients(pack: Pack, gradients: Sequence[torch.Tensor], sequences: int) -> list[torch.Tensor]:
    """Return the loss's derivatives by the pack's logprobs, and by each other kind: float32 ``[lookups]``.

    Args:
        pack: the pack.
        gradients: by sequence, kind after kind.
        sequences: how many there are of each kind.
    """
    return [
        torch.cat([gradients[start + member.index][member.positions] for member in pack.members])
        for start in range(0, len(gradients), sequences)
    ]
