"""The token budget: one pass or two, packs of any size, and what happens when memory runs out."""

from __future__ import annotations

import warnings

import pytest
import torch
from engine_models import (
    CONFIGS,
    assert_same_gradients,
    entangled_loss,
    gradients_of,
    make_model,
    make_sequences,
    plain_gradients,
    plain_logprobs,
    random_tokens,
)
from transformers import AutoModelForCausalLM

from mint_train.backends.local import engine as engine_module
from mint_train.backends.local.engine import Engine, OutOfMemoryError
from mint_train.backends.local.packing import Pack, Segment, TokenSequence, plan_packs
from mint_train.backends.local.scoring import Scorer, ScoringMode


@pytest.fixture
def sequences() -> list[TokenSequence]:
    stem, *tails = random_tokens([8, 5, 9, 3, 12], seed=3)
    return make_sequences([stem + tails[0], stem + tails[1], tails[2] + tails[3], tails[3] + tails[0]])


def count_scores(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Record whether each forward pass had a graph, in order."""
    calls: list[bool] = []
    score = Scorer.score

    def counting(self: Scorer, pack: Pack) -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        return score(self, pack)

    monkeypatch.setattr(Scorer, "score", counting)
    return calls


def test_gradcache_gives_the_gradients_of_one_pass(
    sequences: list[TokenSequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("qwen3")
    single = Engine(model, max_tokens_in_flight=1000, min_shared_tokens=2)
    cached = Engine(model, max_tokens_in_flight=25, min_shared_tokens=2)
    calls = count_scores(monkeypatch)
    one = gradients_of(model, lambda: single.forward_backward(sequences, entangled_loss))
    assert calls == [True]
    calls.clear()
    two = gradients_of(model, lambda: cached.forward_backward(sequences, entangled_loss))
    half = len(calls) // 2
    assert half > 1
    assert calls == [False] * half + [True] * half
    assert_same_gradients(two, one, relative=1e-5)


def test_gradients_accumulate(sequences: list[TokenSequence]) -> None:
    model = make_model("qwen3")
    engine = Engine(model, max_tokens_in_flight=1000)
    once = gradients_of(model, lambda: engine.forward_backward(sequences, entangled_loss))
    twice = gradients_of(
        model, lambda: [engine.forward_backward(sequences, entangled_loss) for _ in range(2)]
    )
    assert_same_gradients(twice, {name: 2 * gradient for name, gradient in once.items()}, relative=1e-6)


def test_a_loss_that_raises_leaves_gradients_unchanged(sequences: list[TokenSequence]) -> None:
    model = make_model("qwen3")
    for budget in (1000, 25):
        engine = Engine(model, max_tokens_in_flight=budget)
        with pytest.raises(KeyError, match="mine"):
            engine.forward_backward(sequences, lambda _: {}["mine"])
        assert all(p.grad is None for p in model.parameters())


def test_the_loss_sees_leaves_and_is_called_once(sequences: list[TokenSequence]) -> None:
    seen: list[list[torch.Tensor]] = []

    def loss(logprobs: list[torch.Tensor]) -> torch.Tensor:
        seen.append(logprobs)
        return entangled_loss(logprobs)

    model = make_model("qwen3")
    engine = Engine(model, max_tokens_in_flight=25)
    engine.forward_backward(sequences, loss)
    assert len(seen) == 1
    assert all(x.is_leaf and x.requires_grad and x.dtype is torch.float32 for x in seen[0])


def test_the_model_is_restored_after_each_call(sequences: list[TokenSequence]) -> None:
    model = make_model("qwen3")
    engine = Engine(model, max_tokens_in_flight=1000)
    before = model.config._attn_implementation
    engine.forward(sequences)
    with pytest.raises(ZeroDivisionError):
        engine.forward_backward(sequences, lambda _: 1 / 0)  # type: ignore[arg-type, return-value]
    assert model.config._attn_implementation == before
    assert not any("forward" in module.__dict__ for module in model.get_base_model().model.modules())


def test_out_of_memory_halves_the_budget_once(
    sequences: list[TokenSequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("qwen3")
    expected = plain_gradients(model, sequences)
    engine = Engine(model, max_tokens_in_flight=40, min_shared_tokens=2)
    score = Scorer.score
    limit = 20

    def tight(self: Scorer, pack: Pack) -> torch.Tensor:
        if pack.rows > limit:
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        return score(self, pack)

    monkeypatch.setattr(Scorer, "score", tight)
    calls = []

    def loss(logprobs: list[torch.Tensor]) -> torch.Tensor:
        calls.append(1)
        return entangled_loss(logprobs)

    found = gradients_of(model, lambda: engine.forward_backward(sequences, loss))
    assert_same_gradients(found, expected)
    assert engine.max_tokens_in_flight == 20
    limit = 1
    with pytest.raises(OutOfMemoryError, match="10 tokens in flight"):
        engine.forward_backward(sequences, loss)
    assert all(p.grad is None for p in model.parameters())


def test_other_errors_are_not_mistaken_for_lack_of_memory(
    sequences: list[TokenSequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(make_model("qwen3"), max_tokens_in_flight=1000)

    def broken(self: Scorer, pack: Pack) -> torch.Tensor:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(Scorer, "score", broken)
    with pytest.raises(RuntimeError, match="size mismatch"):
        engine.forward(sequences)
    assert engine.max_tokens_in_flight == 1000


def test_the_default_budget_follows_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    budgets = []
    for free in (10**8, 2 * 10**8):
        monkeypatch.setattr(engine_module, "free_bytes", lambda _device, free=free: free)
        budgets.append(Engine(make_model("qwen3")).max_tokens_in_flight)
    # Tensors that are soon freed differ in size by a little, and the first layer keeps one of them.
    assert budgets[1] == pytest.approx(2 * budgets[0], rel=0.03)
    lean = Engine(make_model("qwen3"), gradient_checkpointing=True)
    assert lean.max_tokens_in_flight > budgets[1]


def test_an_architecture_without_packing_works_with_one_warning(sequences: list[TokenSequence]) -> None:
    model = make_model("bloom-alibi")
    with pytest.warns(UserWarning, match="does not support packed sequences.*slower") as caught:
        engine = Engine(model, max_tokens_in_flight=1000)
    assert len([w for w in caught if "packed" in str(w.message)]) == 1
    for found, wanted in zip(engine.forward(sequences), plain_logprobs(model, sequences), strict=True):
        torch.testing.assert_close(found, wanted.detach(), rtol=0, atol=1e-5)
    gradients = gradients_of(model, lambda: engine.forward_backward(sequences, entangled_loss))
    assert_same_gradients(gradients, plain_gradients(model, sequences))


def test_an_architecture_without_packing_is_noticed_where_rounding_hides_it() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["bloom-alibi"]())
    for parameter in model.parameters():
        parameter.data.mul_(0.1)  # so that a wrong position moves no logprob by more than bfloat16 does
    with pytest.warns(UserWarning, match="it takes no positions"):
        engine = Engine(model.to(torch.bfloat16), max_tokens_in_flight=1000)
    assert engine.mode is not ScoringMode.PACKED


def test_a_trained_vocabulary_projection_uses_the_models_own_logits(sequences: list[TokenSequence]) -> None:
    model = make_model("llama")
    model.get_base_model().lm_head.weight.requires_grad_(True)
    with pytest.warns(UserWarning, match="logits at every token"):
        engine = Engine(model, max_tokens_in_flight=1000)
    gradients = gradients_of(model, lambda: engine.forward_backward(sequences, entangled_loss))
    assert_same_gradients(gradients, plain_gradients(model, sequences))


def test_common_architectures_are_packed_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("qwen3", "llama", "gpt-neox", "gemma2-softcap"):
            assert Scorer(make_model(name)).mode is ScoringMode.PACKED


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens_in_flight must be at least 1"):
        Engine(make_model("qwen3"), max_tokens_in_flight=0)
    with pytest.raises(ValueError, match="no trainable parameter"):
        Engine(torch.nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ValueError, match="one length"):
        TokenSequence(torch.zeros(2), torch.zeros(3), torch.zeros(2))


def test_nothing_to_score_gives_zeros() -> None:
    tokens = torch.arange(4)
    nothing = TokenSequence(tokens, tokens, torch.zeros(4, dtype=torch.bool))
    engine = Engine(make_model("qwen3"), max_tokens_in_flight=1000)
    assert engine.forward([]) == []
    assert torch.equal(engine.forward([nothing])[0], torch.zeros(4))


def test_a_shared_prefix_is_stored_once() -> None:
    stem, left, right = random_tokens([20, 7, 9], seed=5)
    (pack,) = plan_packs(make_sequences([stem + left, stem + right]), 1000)
    assert pack.rows == 20 + 6 + 8
    assert sorted(segment.context_length for segment in pack.segments) == [0, 20]
    assert pack.longest == 28


def test_a_sequence_that_is_a_prefix_of_another_adds_no_rows() -> None:
    (long,) = random_tokens([30], seed=5)
    (pack,) = plan_packs(make_sequences([long[:25], long, long]), 1000)
    assert pack.segments == (Segment(0, 29),)
    assert [len(member.positions) for member in pack.members] == [29, 29, 24]


def test_tokens_after_the_last_trained_one_are_left_out() -> None:
    tokens = torch.arange(10)
    (pack,) = plan_packs([TokenSequence(tokens, tokens, tokens == 3)], 1000)
    assert pack.rows == 4
    assert pack.lookup_rows.tolist() == [3]


def test_packs_do_not_exceed_their_size() -> None:
    sequences = make_sequences(random_tokens([9, 4, 7, 3, 6, 8], seed=2))
    packs = plan_packs(sequences, 12)
    assert all(pack.rows <= 12 for pack in packs)
    assert sorted(member.index for pack in packs for member in pack.members) == list(range(6))
    assert all(len(pack.members) == 1 for pack in plan_packs(sequences, 1))
