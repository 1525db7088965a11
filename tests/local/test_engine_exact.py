"""The engine's logprobs and adapter gradients equal those of transformers, one sequence at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_models import (
    VOCABULARY,
    assert_same_gradients,
    entangled_loss,
    gradients_of,
    make_model,
    make_sequences,
    plain_gradients,
    plain_logprobs,
    random_tokens,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_train.backends.local import logprobs as logprobs_module
from mint_train.backends.local import norm_and_mlp, swiglu
from mint_train.backends.local.engine import Engine
from mint_train.backends.local.packing import TokenSequence
from mint_train.backends.local.scoring import ScoringMode

PACKED = [
    "qwen3",
    "qwen3-tied",
    "llama",
    "mistral-window",
    "gemma2-softcap",
    "granite-scaled",
    "gpt-neox",
    "gpt2-absolute",
]
A, B, C, D, E = random_tokens([9, 6, 11, 4, 3], seed=7)
LAYOUTS = {
    "ragged": random_tokens([2, 17, 5, 9], seed=1),
    "pairs": [A + B, A + C, D + B, D + C],
    "identical": [A + B, A + B, A + B],
    "one-begins-another": [A, A + B, A + B + C],
    "three-branches": [A + B, A + C, A + D, A[:4] + E],
    "branches-of-branches": [A + B + C, A + B + D, A + C + D, A + C + E],
}


def assert_exact(engine: Engine, model: Any, sequences: list[TokenSequence]) -> None:
    # The engine would notice a mistake in packing and then score the sequences one by one.
    assert engine.mode is ScoringMode.PACKED
    with torch.no_grad():
        expected = plain_logprobs(model, sequences)
    for found, wanted, sequence in zip(engine.forward(sequences), expected, sequences, strict=True):
        assert found.dtype is torch.float32
        assert not found.requires_grad
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        assert (found[~sequence.loss_mask] == 0).all()
    found_gradients = gradients_of(model, lambda: engine.forward_backward(sequences, entangled_loss))
    assert_same_gradients(found_gradients, plain_gradients(model, sequences))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PACKED)
def test_agrees_with_transformers(name: str, layout: str) -> None:
    model = make_model(name)
    engine = Engine(model, max_tokens_in_flight=1000, min_shared_tokens=2)
    assert_exact(engine, model, make_sequences(LAYOUTS[layout], untrained=1))


@pytest.mark.parametrize(
    "name", ["qwen3", "llama", "gemma2-softcap", "granite-scaled", "gpt-neox", "gpt2-absolute"]
)
def test_agrees_with_lora_on_the_vocabulary_projection(name: str) -> None:
    model = make_model(name, head_lora=True)
    engine = Engine(model, max_tokens_in_flight=1000, min_shared_tokens=2)
    assert_exact(engine, model, make_sequences(LAYOUTS["pairs"]))


@pytest.mark.parametrize("name", ["qwen3", "mistral-window", "gemma2-softcap"])
def test_agrees_with_gradient_checkpointing(name: str) -> None:
    model, plain = make_model(name), make_model(name)
    engine = Engine(model, max_tokens_in_flight=1000, min_shared_tokens=2, gradient_checkpointing=True)
    sequences = make_sequences(LAYOUTS["pairs"])
    found = gradients_of(model, lambda: engine.forward_backward(sequences, entangled_loss))
    assert_same_gradients(found, plain_gradients(plain, sequences))


@st.composite
def batches(draw: st.DrawFn) -> list[TokenSequence]:
    """Draw sequences that share a few prefixes, with any targets and any loss mask."""
    token = st.integers(0, VOCABULARY - 1)
    stems = draw(st.lists(st.lists(token, min_size=1, max_size=8), min_size=1, max_size=3))
    sequences = []
    for _ in range(draw(st.integers(1, 6))):
        parts = draw(st.lists(st.sampled_from(stems), min_size=1, max_size=3))
        tokens = torch.tensor([token for part in parts for token in part])
        targets = torch.tensor(draw(st.lists(token, min_size=len(tokens), max_size=len(tokens))))
        trained = torch.tensor(draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens))))
        # At least one trained position: a loss needs something to differentiate.
        trained[draw(st.integers(0, len(tokens) - 1))] = True
        sequences.append(TokenSequence(tokens, targets, trained))
    return sequences


@pytest.mark.parametrize("name", ["qwen3", "llama", "gpt-neox"])
@given(batch=batches(), rows=st.integers(1, 40), budget=st.integers(1, 60), shared=st.integers(1, 6))
@settings(max_examples=12, deadline=None)
def test_any_batch_in_any_budget_agrees(
    name: str, batch: list[TokenSequence], rows: int, budget: int, shared: int
) -> None:
    model = make_model(name)
    engine = Engine(model, max_tokens_in_flight=budget, min_shared_tokens=shared)
    engine.rows_per_pack = rows
    assert_exact(engine, model, batch)


def test_without_adapter_it_is_the_base_model() -> None:
    for head_lora in (False, True):
        model = make_model("qwen3", head_lora=head_lora)
        sequences = make_sequences(LAYOUTS["pairs"])
        engine = Engine(model, max_tokens_in_flight=1000, min_shared_tokens=2)
        with torch.no_grad(), model.disable_adapter():
            expected = plain_logprobs(model, sequences)
        found = engine.forward(sequences, adapter=False)
        for values, wanted, adapted in zip(found, expected, engine.forward(sequences), strict=True):
            torch.testing.assert_close(values, wanted, rtol=0, atol=1e-5)
            assert not torch.allclose(values, adapted, atol=1e-2)
        assert all(p.requires_grad for p in engine.trained)


def test_the_same_input_gives_the_same_bits() -> None:
    model = make_model("qwen3")
    sequences = make_sequences(LAYOUTS["three-branches"] + LAYOUTS["ragged"])
    engine = Engine(model, max_tokens_in_flight=1000, min_shared_tokens=2)
    first, second = engine.forward(sequences), engine.forward(sequences)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    runs = [gradients_of(model, lambda: engine.forward_backward(sequences, entangled_loss)) for _ in range(2)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_denormal_gradients_are_flushed_to_zero() -> None:
    """Processors are ten times slower on them, and a loss gives them to many examples."""
    model = make_model("qwen3")
    engine = Engine(model, max_tokens_in_flight=1000)
    sequences = make_sequences(LAYOUTS["pairs"])
    gradients = gradients_of(
        model, lambda: engine.forward_backward(sequences, lambda scores: torch.cat(scores).sum() * 1e-36)
    )
    tiny = torch.finfo(torch.float32).tiny
    for gradient in gradients.values():
        assert ((gradient == 0) | (gradient.abs() >= tiny)).all()
    assert any((gradient != 0).any() for gradient in gradients.values())
    half = torch.full((), tiny) / 2
    assert half > 0, "the setting must not leak out of the engine"


def test_extreme_logits_stay_finite() -> None:
    from mint_train.backends.local.logprobs import Head, target_logprobs

    hidden = torch.tensor([[300.0, 0.0], [0.0, -300.0], [1e-3, 0.0]], requires_grad=True)
    head = Head(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
    targets = torch.tensor([2, 1, 0])
    found = target_logprobs(hidden, targets, head)
    wanted = (hidden @ head.weight.T).log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(found, wanted)
    slopes = [torch.autograd.grad(values.sum(), hidden)[0] for values in (found, wanted)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("head_lora", [False, True], ids=["plain", "adapted"])
@pytest.mark.parametrize("name", ["qwen3", "gemma2-softcap", "granite-scaled"])
def test_agrees_when_the_vocabulary_takes_several_blocks(
    name: str, head_lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs_module, "CPU_BLOCK", (7, 8))
    model = make_model(name, head_lora=head_lora)
    assert_exact(Engine(model, max_tokens_in_flight=1000), model, make_sequences(LAYOUTS["ragged"]))


@pytest.mark.parametrize(("name", "norms"), [("qwen3", 9), ("llama", 5), ("gemma2-softcap", 0)])
def test_replaced_modules_agree_over_several_blocks(
    name: str, norms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One or two rows of 32 numbers per block.
    monkeypatch.setattr(swiglu, "CACHED_BYTES", 128)
    model = make_model(name)
    found = [type(module).__name__ for module in norm_and_mlp.lean_forwards(model)]
    assert sum("Norm" in kind for kind in found) == norms
    assert sum("MLP" in kind for kind in found) == (0 if name == "gemma2-softcap" else 2)
    assert_exact(Engine(model, max_tokens_in_flight=1000), model, make_sequences(LAYOUTS["ragged"]))


@pytest.mark.parametrize("name", ["qwen3", "gemma2-softcap", "granite-scaled"])
def test_a_bfloat16_model_with_an_adapted_vocabulary_projection_is_packed(name: str) -> None:
    sequences = make_sequences(LAYOUTS["pairs"])
    precise = make_model(name, head_lora=True)
    expected, wanted = plain_logprobs(precise, sequences), plain_gradients(precise, sequences)
    model = make_model(name, head_lora=True, dtype=torch.bfloat16)
    engine = Engine(model, max_tokens_in_flight=1000, min_shared_tokens=2)

    assert engine.mode is ScoringMode.PACKED
    for found, logprobs in zip(engine.forward(sequences), expected, strict=True):
        assert (found - logprobs.detach()).abs().mean() < 0.1
    gradients = gradients_of(model, lambda: engine.forward_backward(sequences, entangled_loss))
    of_head = [key for key in wanted if "lm_head" in key or "embed_out" in key]
    assert len(of_head) == 2
    for key in of_head:
        assert gradients[key].dtype is torch.float32
        assert torch.cosine_similarity(gradients[key].flatten(), wanted[key].flatten(), dim=0) > 0.99


def test_a_bfloat16_model_with_replaced_modules_agrees_to_its_rounding() -> None:
    sequences = make_sequences(LAYOUTS["pairs"])
    expected = plain_logprobs(make_model("qwen3"), sequences)
    model = make_model("qwen3", dtype=torch.bfloat16)
    engine = Engine(model, max_tokens_in_flight=1000)
    assert len(norm_and_mlp.lean_forwards(model)) == 11
    for found, wanted in zip(engine.forward(sequences), expected, strict=True):
        assert (found - wanted.detach()).abs().mean() < 0.1
    assert gradients_of(model, lambda: engine.forward_backward(sequences, entangled_loss))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_replaced_modules_of_16_bits_are_those_of_transformers_to_the_bit(dtype: torch.dtype) -> None:
    model = make_model("qwen3").to(dtype)
    forwards = norm_and_mlp.lean_forwards(model)
    assert len(forwards) == 11
    for module, forward in forwards.items():
        width = (module.weight if hasattr(module, "weight") else module.gate_proj.weight).shape[-1]
        x, grad = torch.randn(2, 1, 50, width, generator=torch.Generator().manual_seed(1)).to(dtype).unbind()
        x.requires_grad_()
        expected, found = module(x), forward(x)
        assert torch.equal(found, expected)
        wanted, gradient = (torch.autograd.grad(result, x, grad)[0] for result in (expected, found))
        # sums in another order: a few numbers are rounded the other way
        assert (gradient == wanted).float().mean() > 0.99
        torch.testing.assert_close(gradient, wanted)
