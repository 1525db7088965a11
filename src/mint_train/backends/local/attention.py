"""Attention inside a pack: each run sees its context and, causally, itself, and nothing else.

Registered with transformers as an attention function; the runs travel as the keyword argument
`packed_runs` of the model's forward. On a CPU some queries of a run at a time meet the keys that
they see: plain matrix products, which run at a higher rate than torch's flash kernel there, of blocks
that stay in cache; the backward computes the weights again, so no scores are kept. Elsewhere, and for
sliding windows or softcapped scores, each run is one call with the smallest mask that will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

from mint_train.backends.local.packing import Run

ATTENTION_NAME = "mint_packed"

HIGH_PRECISION_BYTES = 4
"""Of a smaller dtype the scores would be rounded, which torch's own kernels do not."""
MOST_QUERIES = 128
"""Rows of a block of scores, at most: a block on the diagonal throws half of its last rows' keys away."""
SCORES_PER_BLOCK = 2**20
"""Scores of a block, at most, so that it stays in cache from its product to its softmax and on."""


class UnsupportedAttentionError(Exception):
    """The architecture asks of attention what a pack cannot give."""


def packed_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_runs: Sequence[Run] | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 - transformers passes it
    **extra: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within the runs of a pack.

    The query is ``[1, heads, rows, head_dim]``; key and value may have fewer heads. There is no mask, for a
    pack has its runs instead, and no dropout, or two passes would not agree.

    Returns:
        ``[1, rows, heads, head_dim]`` in the dtype of `query`, and None for the weights.

    Raises:
        UnsupportedAttentionError: a mask, a batch, or an extra such as sinks or a position bias.
    """
    unknown = [name for name in ("position_bias", "s_aux", "cache") if extra.get(name) is not None]
    if packed_runs is None or attention_mask is not None or query.shape[0] != 1 or unknown:
        raise UnsupportedAttentionError(f"packed attention cannot take {unknown or 'a mask or a batch'}")
    if not (extra.get("is_causal") is not False and getattr(module, "is_causal", True)):
        raise UnsupportedAttentionError("packed attention is causal only")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    longest = max(run.context_length + run.stop - run.start for run in packed_runs)
    window = sliding_window if sliding_window is not None and sliding_window < longest else None
    plain = window is None and softcap is None and value.shape[-1] == query.shape[-1]
    if plain and query.device.type == "cpu" and query.element_size() >= HIGH_PRECISION_BYTES:
        out = _BlockedRuns.apply(query, key, value, tuple(packed_runs), scale)
        return cast(torch.Tensor, out), None
    return _attend_run_by_run(query, key, value, packed_runs, scale, window, softcap), None


AttentionInterface.register(ATTENTION_NAME, packed_attention_forward)


class _BlockedRuns(torch.autograd.Function):
    """All runs of a pack on a CPU, some queries at a time; the backward computes the weights again."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        runs: tuple[Run, ...],
        scale: float,
    ) -> torch.Tensor:
        _, heads, rows, dim = query.shape
        kv_heads = key.shape[1]
        out = query.new_empty(rows, heads, dim)
        q, o = _by_key_head(query[0], kv_heads), _by_key_head(out.transpose(0, 1), kv_heads)
        for run in runs:
            keys, values = _seen(key[0], run), _seen(value[0], run)
            for block, seen in _blocks(run, heads):
                weights = _weights(q[:, :, block].flatten(1, 2), keys[:, :seen], block, scale)
                o[:, :, block] = torch.bmm(weights, values[:, :seen]).view_as(o[:, :, block])
        ctx.save_for_backward(query, key, value)
        ctx.runs, ctx.scale = runs, scale
        return out.unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        heads, kv_heads = query.shape[1], key.shape[1]
        grad_q, grad_k, grad_v = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        q, dq, do = (_by_key_head(x, kv_heads) for x in (query[0], grad_q[0], grad[0].transpose(0, 1)))
        for run in ctx.runs:
            keys, values = _seen(key[0], run), _seen(value[0], run)
            dk, dv = torch.zeros_like(keys), torch.zeros_like(values)
            for block, seen in _blocks(run, heads):
                queries, slopes = q[:, :, block].flatten(1, 2), do[:, :, block].flatten(1, 2)
                weights = _weights(queries, keys[:, :seen], block, ctx.scale)
                dv[:, :seen].baddbmm_(weights.transpose(1, 2), slopes)
                by_weight = torch.bmm(slopes, values[:, :seen].transpose(1, 2))
                by_score = torch._softmax_backward_data(by_weight, weights, -1, weights.dtype).mul_(ctx.scale)
                dq[:, :, block] = torch.bmm(by_score, keys[:, :seen]).view_as(dq[:, :, block])
                dk[:, :seen].baddbmm_(by_score.transpose(1, 2), queries)
            start = 0
            for first, stop in (*run.context, (run.start, run.stop)):
                part = slice(start, start + stop - first)
                grad_k[0, :, first:stop] += dk[:, part]
                grad_v[0, :, first:stop] += dv[:, part]
                start = part.stop
        return grad_q, grad_k, grad_v, None, None


def _by_key_head(states: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """``[heads, rows, dim]`` as ``[kv_heads, heads that share keys, rows, dim]``, a view."""
    return cast(torch.Tensor, states.unflatten(0, (kv_heads, -1)))


def _seen(states: torch.Tensor, run: Run) -> torch.Tensor:
    """Keys or values that a run's last row sees, its context first: ``[kv_heads, seen, dim]``."""
    return torch.cat([states[:, start:stop] for start, stop in (*run.context, (run.start, run.stop))], dim=1)


def _blocks(run: Run, heads: int) -> Iterator[tuple[slice, int]]:
    """Rows of a run that are computed together, and how many keys the last of them sees."""
    rows = run.stop - run.start
    most = min(MOST_QUERIES, SCORES_PER_BLOCK // (heads * (run.context_length + rows)))
    # Blocks of equal size: a small last one would run at a lower rate.
    size = -(-rows // -(-rows // max(1, most)))
    for start in range(run.start, run.stop, size):
        stop = min(start + size, run.stop)
        yield slice(start, stop), run.context_length + stop - run.start


def _weights(queries: torch.Tensor, keys: torch.Tensor, block: slice, scale: float) -> torch.Tensor:
    """Attention weights of a block of rows, each of which sees one key more than the row before it.

    Args:
        queries: ``[kv_heads, heads that share keys x rows, dim]``.
        keys: ``[kv_heads, seen, dim]``, the last of them those of the rows themselves.
        block: the rows.
        scale: factor of the scores.
    """
    rows = block.stop - block.start
    scores = torch.baddbmm(queries.new_empty(()), queries, keys.transpose(1, 2), beta=0, alpha=scale)
    ahead = torch.full((rows, rows), float("-inf"), dtype=scores.dtype).triu_(1)
    scores.unflatten(1, (-1, rows))[..., -rows:] += ahead
    return torch.softmax(scores, -1, out=scores)


def _attend_run_by_run(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    runs: Sequence[Run],
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """One attention call per run, keys of its context put before its own; differentiable by autograd."""
    # Splitting once keeps the backward linear: slices would each fill a whole tensor with zeros.
    sizes = [run.stop - run.start for run in runs]
    owner = {run.start: index for index, run in enumerate(runs)}
    starts = sorted(owner)
    queries, keys, values = (torch.split(states, sizes, dim=2) for states in (query, key, value))
    outputs: list[torch.Tensor] = []
    for index, run in enumerate(runs):
        k_parts, v_parts = [], []
        for start, stop in run.context:
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
    """Causal attention of the last rows of `k`; ``[1, heads, queries, dim]``."""
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
    """Mask, bool ``[queries, length]``: True where the query, one of the last rows, may look."""
    query_at = torch.arange(length - queries, length, device=device).unsqueeze(1)
    key_at = torch.arange(length, device=device)
    mask = key_at <= query_at
    return mask if window is None else mask & (key_at > query_at - window)
