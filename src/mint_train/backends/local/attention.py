"""Attention inside a pack: each run sees its context and, causally, itself, and nothing else.

Registered with transformers as an attention function; the runs travel as the keyword argument
`packed_runs` of the model's forward. On a CPU the work is done block by block with torch's own
flash kernel, and blocks are joined by their log-sum-exp (as in ring attention, arXiv 2310.01889),
so nothing is computed that a causal mask would throw away, and no mask exists. Elsewhere, and for
sliding windows or softcapped scores, each run is one call with the smallest mask that will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

from mint_train.backends.local.packing import Run

ATTENTION_NAME = "mint_packed"

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


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
    if plain and query.device.type == "cpu":
        out = _FlashRuns.apply(query, key, value, tuple(packed_runs), scale)
        return cast(torch.Tensor, out), None
    return _attend_run_by_run(query, key, value, packed_runs, scale, window, softcap), None


AttentionInterface.register(ATTENTION_NAME, packed_attention_forward)


def _grouped(states: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """``[1, heads, rows, dim]`` as ``[kv_heads, group, rows, dim]``, a view."""
    _, heads, rows, dim = states.shape
    return states.view(kv_heads, heads // kv_heads, rows, dim)


class _FlashRuns(torch.autograd.Function):
    """All runs of a pack with the CPU flash kernel; the backward reuses it block by block."""

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
        group = heads // kv_heads
        q = _grouped(query, kv_heads)
        # Heads that share keys read them through a stride of 0: no copy.
        k, v = (states[0].unsqueeze(1).expand(kv_heads, group, rows, dim) for states in (key, value))
        out = query.new_empty(rows, heads, dim)
        lse = torch.empty(kv_heads, group, rows, dtype=torch.float32)
        out_heads = out.view(rows, kv_heads, group, dim).permute(1, 2, 0, 3)
        for run in runs:
            here = slice(run.start, run.stop)
            joined, joined_lse = _flash(q[:, :, here], k[:, :, here], v[:, :, here], 0.0, True, scale=scale)
            for start, stop in run.context:
                past = slice(start, stop)
                part, part_lse = _flash(q[:, :, here], k[:, :, past], v[:, :, past], 0.0, False, scale=scale)
                joined, joined_lse = _join(joined, joined_lse, part, part_lse)
            out_heads[:, :, here] = joined
            lse[:, :, here] = joined_lse
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.runs, ctx.scale = runs, scale
        return out.unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        _, heads, rows, dim = query.shape
        kv_heads = key.shape[1]
        group = heads // kv_heads
        q = _grouped(query, kv_heads)
        k, v = (states[0].unsqueeze(1).expand(kv_heads, group, rows, dim) for states in (key, value))
        o, g = (t.reshape(rows, kv_heads, group, dim).permute(1, 2, 0, 3) for t in (out, grad))
        grad_q, grad_k, grad_v = (torch.empty_like(states) for states in (query, key, value))
        grad_q_heads = _grouped(grad_q, kv_heads)
        for run in ctx.runs:
            here = slice(run.start, run.stop)
            mine = (g[:, :, here], q[:, :, here])
            known = (o[:, :, here], lse[:, :, here])
            if run.stop - run.start == 1 and not run.context:
                # A row that sees itself alone passes its value on; the kernel's zeros would be rounded ones.
                grad_q[:, :, here], grad_k[:, :, here] = 0, 0
                torch.sum(g[:, :, here], 1, out=grad_v[0, :, here])
                continue
            # With the joined output and log-sum-exp each block's gradient is its exact share.
            dq, dk, dv = _flash_backward(
                *mine, k[:, :, here], v[:, :, here], *known, 0.0, True, scale=ctx.scale
            )
            # A run's own block comes before the blocks of those that continue it: nothing to add to yet.
            torch.sum(dk, 1, out=grad_k[0, :, here])
            torch.sum(dv, 1, out=grad_v[0, :, here])
            for start, stop in run.context:
                past = slice(start, stop)
                dq_past, dk, dv = _flash_backward(
                    *mine, k[:, :, past], v[:, :, past], *known, 0.0, False, scale=ctx.scale
                )
                dq += dq_past
                grad_k[0, :, past] += dk.sum(1)
                grad_v[0, :, past] += dv.sum(1)
            grad_q_heads[:, :, here] = dq
        return grad_q, grad_k, grad_v, None, None


def _join(
    left: torch.Tensor, left_lse: torch.Tensor, right: torch.Tensor, right_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over two sets of keys from attention over each."""
    lse = torch.logaddexp(left_lse, right_lse)
    left_part = left * (left_lse - lse).exp().unsqueeze(-1)
    return left_part.add_(right * (right_lse - lse).exp().unsqueeze(-1)), lse


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
