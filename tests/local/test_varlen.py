"""The layout for variable-length attention, with a plain implementation in place of the CUDA kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_models import make_sequences, random_tokens

from mint_train.backends.local import varlen
from mint_train.backends.local.attention import packed_attention_forward
from mint_train.backends.local.packing import plan_packs

HEADS, KV_HEADS, DIM = 4, 2, 8


def plain_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_starts: torch.Tensor,
    key_starts: torch.Tensor,
    *_: Any,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Compute what flash attention documents: per sequence, a causal mask aligned to the last key."""
    assert enable_gqa == (query.shape[1] != key.shape[1])
    outputs = []
    for index in range(len(query_starts) - 1):
        q = query[query_starts[index] : query_starts[index + 1]].transpose(0, 1)
        k, v = (
            states[key_starts[index] : key_starts[index + 1]]
            .transpose(0, 1)
            .repeat_interleave(len(q) // states.shape[1], dim=0)
            for states in (key, value)
        )
        distance = torch.arange(k.shape[1]) - torch.arange(k.shape[1] - q.shape[1], k.shape[1]).unsqueeze(1)
        mask = distance <= window_size[1]
        if window_size[0] >= 0:
            mask &= distance >= -window_size[0]
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(~mask, float("-inf"))
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("grouped", [True, False], ids=["grouped", "repeated"])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("shared", [0, 20], ids=["no-prefix", "prefix"])
def test_one_varlen_call_equals_a_call_per_segment(
    window: int | None, shared: int, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stem, *tails = random_tokens([shared + 1, 5, 9, 3], seed=3)
    (pack,) = plan_packs(make_sequences([stem[:shared] + tail for tail in tails]), 1000, min_shared=2)
    assert any(segment.context for segment in pack.segments) == bool(shared)
    torch.manual_seed(0)
    states = [torch.randn(1, heads, pack.rows, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    monkeypatch.setattr(varlen, "VARLEN_ATTENTION", plain_varlen)
    monkeypatch.setattr(varlen, "GROUPED", grouped)
    found = varlen.attend_varlen(*states, pack.segments, DIM**-0.5, window)
    module = torch.nn.Identity()
    expected, _ = packed_attention_forward(
        module, *states, None, packed_segments=pack.segments, sliding_window=window
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
