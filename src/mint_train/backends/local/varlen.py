"""Attention within a pack on CUDA: all segments in one call of torch's variable-length flash attention."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate, chain
from typing import Any, NamedTuple, cast

import torch

from mint_train.backends.local.packing import Segment

HALF_DTYPES = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 256
"""Largest head dimension of torch's flash attention."""


def find_varlen_attention() -> Callable[..., torch.Tensor] | None:
    """Return torch's variable-length attention, or None if this torch lacks it or an argument needed here."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    needed = {"scale", "window_size"}
    return cast(Any, varlen_attn) if needed <= inspect.signature(varlen_attn).parameters.keys() else None


VARLEN_ATTENTION = find_varlen_attention()
GROUPED = VARLEN_ATTENTION is not None and "enable_gqa" in inspect.signature(VARLEN_ATTENTION).parameters
"""Whether it takes fewer heads of keys than of queries."""


def can_attend_varlen(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether the kernel takes these states, ``[1, heads, rows, head_dim]``."""
    dim = query.shape[-1]
    suits = query.device.type == "cuda" and query.dtype in HALF_DTYPES
    return VARLEN_ATTENTION is not None and suits and dim <= LARGEST_HEAD and value.shape[-1] == dim


class KeyLayout(NamedTuple):
    """Where the queries and keys of each segment are, on the queries' device.

    Attributes:
        rows: int64 ``[keys]``, the rows of each segment's context and of the segment; None if all keys are
            used once and in order.
        query_starts, key_starts: int32 ``[segments + 1]``, cumulative numbers of queries and keys.
        most_queries, most_keys: of one segment.
    """

    rows: torch.Tensor | None
    query_starts: torch.Tensor
    key_starts: torch.Tensor
    most_queries: int
    most_keys: int


@lru_cache(maxsize=2)  # all layers of a model see the same pack
def key_layout(segments: tuple[Segment, ...], device: torch.device) -> KeyLayout:
    """Lay out the keys of each segment one after the other."""
    ranges = [(*segment.context, (segment.start, segment.stop)) for segment in segments]
    queries = [segment.stop - segment.start for segment in segments]
    keys = [sum(stop - start for start, stop in one) for one in ranges]
    rows = None
    if any(segment.context for segment in segments):
        rows = torch.cat([torch.arange(*one) for one in chain.from_iterable(ranges)]).to(device)
    starts = [torch.tensor([0, *accumulate(lengths)], dtype=torch.int32) for lengths in (queries, keys)]
    return KeyLayout(rows, starts[0].to(device), starts[1].to(device), max(queries), max(keys))


def attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: tuple[Segment, ...],
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """Compute attention in one call of flash attention, which aligns a causal mask to the last key.

    Keys of shared prefixes are copied for each segment that continues them.
    """
    if VARLEN_ATTENTION is None:
        raise RuntimeError("this torch has no variable-length attention")
    layout = key_layout(segments, query.device)
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    if layout.rows is not None:
        keys, values = keys.index_select(0, layout.rows), values.index_select(0, layout.rows)
    shared_by = queries.shape[1] // keys.shape[1]
    if shared_by > 1 and not GROUPED:
        keys, values = (states.repeat_interleave(shared_by, dim=1) for states in (keys, values))
    out = VARLEN_ATTENTION(
        queries,
        keys,
        values,
        layout.query_starts,
        layout.key_starts,
        layout.most_queries,
        layout.most_keys,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **({"enable_gqa": shared_by > 1} if GROUPED else {}),
    )
    return out.unsqueeze(0)
