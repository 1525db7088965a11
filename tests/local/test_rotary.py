"""Queries and keys are rotated as transformers does it, wherever that is the usual rotation."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from engine_models import BASICS, entangled_loss, make_model, make_sequences, random_tokens
from transformers import AutoModelForCausalLM
from transformers.models.cohere import CohereConfig
from transformers.models.qwen3 import modeling_qwen3

from mint_train.backends.local import rotary
from mint_train.backends.local.engine import Engine
from mint_train.backends.local.rotary import lean_rotations, replaced_rotations


def states(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rotated(module: ModuleType, dtype: torch.dtype, *, dim: int) -> list[torch.Tensor]:
    """Rotate queries and keys that are views, as in an attention layer; return both and their gradients."""
    q = states(1, 7, 4, 8, seed=1).to(dtype).requires_grad_()
    k = states(1, 7, 2, 8, seed=2).to(dtype).requires_grad_()
    # the halves differ, which no angles' cosines do: so a half in place of the other one would show
    cos, sin = states(1, 7, dim, seed=3).to(dtype), states(1, 7, dim, seed=4).to(dtype)
    rotate: Any = vars(module)[rotary.NAME]
    found = rotate(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    (found[0] * states(1, 4, 7, 8, seed=5)).sum().add(
        (found[1] * states(1, 2, 7, 8, seed=6)).sum()
    ).backward()
    assert q.grad is not None
    assert k.grad is not None
    return [*found, q.grad, k.grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_values_and_gradients_are_those_of_transformers_to_the_bit(dtype: torch.dtype) -> None:
    expected = rotated(modeling_qwen3, dtype, dim=8)
    with replaced_rotations(lean_rotations(make_model("qwen3"))):
        found = rotated(modeling_qwen3, dtype, dim=8)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral-window", "gemma2-softcap", "gpt-neox"])
def test_a_step_rotates_whole_heads_here_and_leaves_parts_to_transformers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(rotary._Rotation, "forward", counted(rotary._Rotation.forward, calls))
    model = make_model(name)
    engine = Engine(model, max_tokens_in_flight=1000)
    calls.clear()
    engine.forward_backward(make_sequences(random_tokens([9, 6], seed=7)), entangled_loss)
    # of each of two layers, the queries and the keys; GPT-NeoX rotates a part of each alone
    assert len(calls) == (0 if name == "gpt-neox" else 4)


def counted(function: Any, calls: list[None]) -> staticmethod[..., Any]:
    def count(*arguments: Any) -> Any:
        calls.append(None)
        return function(*arguments)

    return staticmethod(count)


def test_another_rotation_is_left_alone() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = AutoModelForCausalLM.from_config(
        CohereConfig(**BASICS, **sizes)
    )  # it rotates neighbours, not halves
    assert rotary.NAME in vars(sys.modules[type(model).__module__])
    assert lean_rotations(model) == {}


def test_the_function_of_transformers_is_restored() -> None:
    before = modeling_qwen3.apply_rotary_pos_emb
    with replaced_rotations(lean_rotations(make_model("qwen3"))):
        assert modeling_qwen3.apply_rotary_pos_emb is not before
    assert modeling_qwen3.apply_rotary_pos_emb is before
