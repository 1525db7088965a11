"""Attention within a pack: each segment attends to its context and, causally, to itself.

The function is registered with transformers; the segments reach it as the keyword argument
`packed_segments` of the model's forward. On a CPU in float32, attention is computed for a block of queries
at a time with plain matrix products, which stay in cache and are faster there than torch's flash kernel;
the backward recomputes the weights, so no scores are kept. On CUDA in half precision all segments are one
call of torch's variable-length flash attention, if the installed torch has it. Otherwise, and for softcapped
scores, each segment is one attention call with the smallest possible mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

from mint_train.backends.local.packing import Segment
from mint_train.backends.local.recomputed import kept_for
from mint_train.backends.local.varlen import attend_varlen, can_attend_varlen

ATTENTION_NAME = "mint_packed"

HIGH_PRECISION_BYTES = 4
"""Item size from which scores may be kept in the input's dtype; torch's kernels compute them in float32."""
MOST_QUERIES = 128
"""Most queries per block: in the block on the diagonal, half of the scores are masked out and wasted."""
SCORES_PER_BLOCK = 2**20
"""Most scores per block, so that they stay in cache between the two products and the softmax."""


class UnsupportedAttentionError(Exception):
    """The architecture needs an attention feature that packs do not support."""


def packed_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_segments: Sequence[Segment] | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 - transformers passes it
    **extra: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention within the segments of a pack.

    The query is ``[1, heads, rows, head_dim]``; key and value may have fewer heads. The segments replace the
    mask. Dropout is never applied, because two passes over one batch must agree.

    Returns:
        ``[1, rows, heads, head_dim]`` in the dtype of `query`, and None for the weights.

    Raises:
        UnsupportedAttentionError: given a mask, a batch of several rows, attention sinks or a position bias.
    """
    unknown = [name for name in ("position_bias", "s_aux", "cache") if extra.get(name) is not None]
    if packed_segments is None or attention_mask is not None or query.shape[0] != 1 or unknown:
        raise UnsupportedAttentionError(f"packed attention does not support {unknown or 'a mask or a batch'}")
    if not (extra.get("is_causal") is not False and getattr(module, "is_causal", True)):
        raise UnsupportedAttentionError("packed attention must be causal")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    longest = max(segment.context_length + segment.stop - segment.start for segment in packed_segments)
    window = sliding_window if sliding_window is not None and sliding_window < longest else None
    plain = window is None and softcap is None and value.shape[-1] == query.shape[-1]
    if plain and query.device.type == "cpu" and query.element_size() >= HIGH_PRECISION_BYTES:
        out = _BlockedSegments.apply(query, key, value, tuple(packed_segments), scale)
        return cast(torch.Tensor, out), None
    if softcap is None and can_attend_varlen(query, value):
        return attend_varlen(query, key, value, tuple(packed_segments), scale, window), None
    return _attend_by_segment(query, key, value, packed_segments, scale, window, softcap), None


AttentionInterface.register(ATTENTION_NAME, packed_attention_forward)


class _BlockedSegments(torch.autograd.Function):
    """Attention on a CPU, a block of queries at a time; the backward recomputes the weights."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        segments: tuple[Segment, ...],
        scale: float,
    ) -> torch.Tensor:
        _, heads, rows, dim = query.shape
        kv_heads = key.shape[1]
        out = query.new_empty(rows, heads, dim)
        q, o = _by_key_head(query[0], kv_heads), _by_key_head(out.transpose(0, 1), kv_heads)
        for segment in segments:
            keys, values = _seen(key[0], segment), _seen(value[0], segment)
            for block, seen in _blocks(segment, heads):
                weights = _weights(q[:, :, block].flatten(1, 2), keys[:, :seen], block, scale)
                o[:, :, block] = torch.bmm(weights, values[:, :seen]).view_as(o[:, :, block])
        (ctx.query_of, for_query), (ctx.key_of, for_key) = kept_for(query), kept_for(key)
        ctx.save_for_backward(value, *for_query, *for_key)
        ctx.segments, ctx.scale, ctx.split = segments, scale, len(for_query)
        return out.unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        value, *kept = ctx.saved_tensors
        query, key = ctx.query_of(*kept[: ctx.split]), ctx.key_of(*kept[ctx.split :])
        heads, kv_heads = query.shape[1], key.shape[1]
        grad_q, grad_k, grad_v = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        q, dq, do = (_by_key_head(x, kv_heads) for x in (query[0], grad_q[0], grad[0].transpose(0, 1)))
        for segment in ctx.segments:
            keys, values = _seen(key[0], segment), _seen(value[0], segment)
            dk, dv = torch.zeros_like(keys), torch.zeros_like(values)
            for block, seen in _blocks(segment, heads):
                queries, grads = q[:, :, block].flatten(1, 2), do[:, :, block].flatten(1, 2)
                weights = _weights(queries, keys[:, :seen], block, ctx.scale)
                dv[:, :seen].baddbmm_(weights.transpose(1, 2), grads)
                by_weight = torch.bmm(grads, values[:, :seen].transpose(1, 2))
                by_score = torch._softmax_backward_data(by_weight, weights, -1, weights.dtype).mul_(ctx.scale)
                dq[:, :, block] = torch.bmm(by_score, keys[:, :seen]).view_as(dq[:, :, block])
                dk[:, :seen].baddbmm_(by_score.transpose(1, 2), queries)
            start = 0
            for first, stop in (*segment.context, (segment.start, segment.stop)):
                part = slice(start, start + stop - first)
                grad_k[0, :, first:stop] += dk[:, part]
                grad_v[0, :, first:stop] += dv[:, part]
                start = part.stop
        return grad_q, grad_k, grad_v, None, None


def _by_key_head(states: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """View ``[heads, rows, dim]`` as ``[kv_heads, heads per kv head, rows, dim]``."""
    return cast(torch.Tensor, states.unflatten(0, (kv_heads, -1)))


def _seen(states: torch.Tensor, segment: Segment) -> torch.Tensor:
    """Keys or values that a run's last row sees, its context first: ``[kv_heads, seen, dim]``."""
    ranges = (*segment.context, (segment.start, segment.stop))
    return torch.cat([states[:, start:stop] for start, stop in ranges], dim=1)


def _blocks(segment: Segment, heads: int) -> Iterator[tuple[slice, int]]:
    """Yield a segment's blocks of rows, each with the number of keys that its last row attends to."""
    rows = segment.stop - segment.start
    most = min(MOST_QUERIES, SCORES_PER_BLOCK // (heads * (segment.context_length + rows)))
    # Blocks of equal size: a small last one would run at a lower rate.
    size = -(-rows // -(-rows // max(1, most)))
    for start in range(segment.start, segment.stop, size):
        stop = min(start + size, segment.stop)
        yield slice(start, stop), segment.context_length + stop - segment.start


def _weights(queries: torch.Tensor, keys: torch.Tensor, block: slice, scale: float) -> torch.Tensor:
    """Compute the attention weights of a block of rows, ``[kv_heads, heads per kv head x rows, seen]``.

    Args:
        queries: ``[kv_heads, heads per kv head x rows, dim]``.
        keys: ``[kv_heads, seen, dim]``; the last ones belong to the rows themselves.
        block: the rows; each attends to one key more than the row before it.
        scale: factor of the scores.
    """
    rows = block.stop - block.start
    scores = torch.baddbmm(queries.new_empty(()), queries, keys.transpose(1, 2), beta=0, alpha=scale)
    ahead = torch.full((rows, rows), float("-inf"), dtype=scores.dtype).triu_(1)
    scores.unflatten(1, (-1, rows))[..., -rows:] += ahead
    return torch.softmax(scores, -1, out=scores)


def _attend_by_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Sequence[Segment],
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Make one attention call per segment, its context's keys before its own; autograd differentiates it."""
    # Split once, so the backward stays linear: the gradient of each slice would be a full tensor of zeros.
    sizes = [segment.stop - segment.start for segment in segments]
    owner = {segment.start: index for index, segment in enumerate(segments)}
    starts = sorted(owner)
    queries, keys, values = (torch.split(states, sizes, dim=2) for states in (query, key, value))
    outputs: list[torch.Tensor] = []
    for index, segment in enumerate(segments):
        k_parts, v_parts = [], []
        for start, stop in segment.context:
            home = next(first for first in reversed(starts) if first <= start)
            rows = slice(start - home, stop - home)
            k_parts.append(keys[owner[home]][:, :, rows])
            v_parts.append(values[owner[home]][:, :, rows])
        k = torch.cat([*k_parts, keys[index]], dim=2) if k_parts else keys[index]
        v = torch.cat([*v_parts, values[index]], dim=2) if v_parts else values[index]
        outputs.append(_attend(queries[index], k, v, scale, window, softcap))
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int | None, softcap: float | None
) -> torch.Tensor:
    """Compute causal attention for queries of the last rows of `k`: ``[1, heads, queries, dim]``."""
    grouped = q.shape[1] != k.shape[1]
    queries, length = q.shape[2], k.shape[2]
    if window is None and softcap is None:
        if queries == length:
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=grouped
            )
        bias = cast(torch.Tensor, causal_lower_right(queries, length))
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, scale=scale, enable_gqa=grouped
        )
    mask = _causal_mask(queries, length, window, q.device)
    if softcap is None:
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped
        )
    if grouped:
        k, v = (states.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for states in (k, v))
    scores = torch.tanh(q @ k.transpose(2, 3) * (scale / softcap)) * softcap
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32)
    return weights.to(q.dtype) @ v


def _causal_mask(queries: int, length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Make a mask, bool ``[queries, length]``, True where a query (one of the last rows) may attend."""
    query_at = torch.arange(length - queries, length, device=device).unsqueeze(1)
    key_at = torch.arange(length, device=device)
    mask = key_at <= query_at
    return mask if window is None else mask & (key_at > query_at - window)
