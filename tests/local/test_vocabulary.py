"""Quantities over the vocabulary equal those of whole logits, with their gradients, block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from engine_models import (
    VOCABULARY,
    assert_same_gradients,
    gradients_of,
    make_model,
    make_sequences,
    random_tokens,
)
from torch.utils._python_dispatch import TorchDispatchMode

from mint_train.backends.local import logprobs as logprobs_module
from mint_train.backends.local.engine import Engine
from mint_train.backends.local.logprobs import Head
from mint_train.backends.local.packing import TokenSequence
from mint_train.backends.local.scoring import ScoringMode
from mint_train.backends.local.vocabulary import States, vocabulary_values
from mint_train.batches.vocabulary import QUANTITIES

NAMES = tuple(QUANTITIES)
EXACT = 1e-10
A, B, C, D = random_tokens([9, 6, 11, 4], seed=7)
LAYOUT = [A + B, A + C, D + B, D]


def by_definition(logits: torch.Tensor, reference: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """Write down the logprobs and each quantity once more, token by token of whole logits."""
    p, q = logits.softmax(-1), reference.softmax(-1)
    found = {
        "entropy": -(p * p.log()).sum(-1),
        "log_expected_prob": p.square().sum(-1).log(),
        "forward_kl": (q * q.log()).sum(-1) - (q * p.log()).sum(-1),
        "reverse_kl": (p * p.log()).sum(-1) - (p * q.log()).sum(-1),
        "reference_entropy_share": -(q * q.log()).sum(-1) / math.log(logits.shape[-1]),
    }
    return [p.log()[torch.arange(len(targets)), targets], *(found[name] for name in NAMES)]


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("form", ["plain", "scaled, capped, with a bias and a LoRA"])
def test_blocks_give_what_whole_logits_give(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs_module, "CPU_BLOCK", (3, 5))
    hidden, frozen = drawn(7, 6, seed=1).requires_grad_(), drawn(7, 6, seed=2)
    weight, bias, targets = drawn(23, 6, seed=3), drawn(23, seed=4), torch.arange(7) * 3
    down, up = drawn(2, 6, seed=5).requires_grad_(), drawn(23, 2, seed=6).requires_grad_()
    trained = [hidden] if form == "plain" else [hidden, down, up]
    head = Head(weight) if form == "plain" else Head(weight, bias, down, up, 0.5, 0.7, 2.0)
    other = Head(weight) if form == "plain" else Head(weight, bias, scale=0.7, softcap=2.0)

    def whole(states: torch.Tensor, adapted: bool) -> torch.Tensor:
        if form == "plain":
            return states @ weight.T
        lora = 0.5 * states @ down.T @ up.T if adapted else 0.0
        return 2 * torch.tanh(0.7 * (states @ weight.T + bias + lora) / 2)

    found = vocabulary_values(States(hidden, head), targets, NAMES, States(frozen, other))
    expected = by_definition(whole(hidden, True), whole(frozen, False), targets)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=EXACT)
    weights = drawn(len(found), 7, seed=9)
    own = torch.autograd.grad((torch.stack(list(found)) * weights).sum(), trained)
    plain = torch.autograd.grad((torch.stack(expected) * weights).sum(), trained)
    for one, two in zip(own, plain, strict=True):
        torch.testing.assert_close(one, two, rtol=EXACT, atol=EXACT)


def perturbed(model: Any) -> None:
    """Move the adapter on, as training does."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data += 0.05 * noise


def plain_values(model: Any, start: Any, sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
    """Compute what the engine gives by transformers' own forward of the policy and of where it began."""
    kinds: list[list[torch.Tensor]] = [[] for _ in range(1 + len(NAMES))]
    for sequence in sequences:
        logits = [
            m(input_ids=sequence.input_tokens.unsqueeze(0), use_cache=False).logits[0] for m in (model, start)
        ]
        values = by_definition(logits[0], logits[1].detach(), sequence.target_tokens)
        for kind, value in zip(kinds, values, strict=True):
            kind.append(torch.where(sequence.loss_mask, value, 0.0))
    return [value for kind in kinds for value in kind]


def mixed_loss(values: list[torch.Tensor]) -> torch.Tensor:
    """Compute a loss of all kinds of values together, not a sum over sequences or kinds."""
    sums = torch.stack([(value * torch.linspace(0.3, 1, len(value))).sum() / 10 for value in values])
    return torch.logsumexp(sums, 0) + (0.1 * sums.sum()).sin()


@pytest.mark.parametrize("budget", [1000, 12], ids=["one pass", "two passes"])
@pytest.mark.parametrize(
    ("name", "head_lora", "precision"),
    [
        ("gpt2-absolute", False, EXACT),
        ("gpt2-absolute", True, EXACT),
        # the norms of these are computed in float32, whatever the model's dtype
        ("qwen3", False, 1e-4),
        ("gemma2-softcap", True, 1e-4),
        ("granite-scaled", False, 1e-4),
    ],
)
def test_the_engine_agrees_with_transformers_in_float64(
    name: str, head_lora: bool, precision: float, budget: int
) -> None:
    model, start = (make_model(name, head_lora=head_lora).double() for _ in range(2))
    engine = Engine(model, max_tokens_in_flight=budget, min_shared_tokens=2)
    engine.keep_reference()
    perturbed(model)
    sequences = make_sequences(LAYOUT, untrained=1)
    with torch.no_grad():
        expected = plain_values(model, start, sequences)
    found = engine.forward(sequences, vocabulary=NAMES)
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=precision)
    own = gradients_of(model, lambda: engine.forward_backward(sequences, mixed_loss, NAMES))
    plain = gradients_of(model, lambda: mixed_loss(plain_values(model, start, sequences)).backward())
    assert_same_gradients(own, plain, relative=precision)


def test_a_model_that_gives_whole_logits_gives_the_same() -> None:
    model = make_model("qwen3").double()
    engine = Engine(model, max_tokens_in_flight=1000, min_shared_tokens=2)
    engine.keep_reference()
    perturbed(model)
    sequences = make_sequences(LAYOUT)
    packed = engine.forward(sequences, vocabulary=NAMES)
    engine._scorer.mode = ScoringMode.WHOLE
    for one, two in zip(engine.forward(sequences, vocabulary=NAMES), packed, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-4)


def test_the_reference_is_the_adapter_that_was_kept_and_stays_so() -> None:
    model = make_model("qwen3")
    engine = Engine(model, max_tokens_in_flight=1000)
    engine.keep_reference()
    sequences = make_sequences(LAYOUT)

    def divergences() -> torch.Tensor:
        return torch.cat(engine.forward(sequences, vocabulary=("forward_kl",))[len(sequences) :])

    assert (divergences() == 0).all()
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    perturbed(model)
    moved = divergences()
    assert float(moved.sum()) > 0.01
    model.load_state_dict(before)
    assert (divergences() == 0).all()


class Largest(TorchDispatchMode):
    """Notes the most numbers that a tensor made inside of it holds."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return result


def test_no_tensor_has_a_number_per_token_and_entry_of_the_vocabulary() -> None:
    tokens, vocabulary, width = 3000, 5000, 4
    hidden = drawn(tokens, width, seed=1).float().requires_grad_()
    head = Head(drawn(vocabulary, width, seed=3).float())
    reference = States(drawn(tokens, width, seed=2).float(), head)
    with Largest() as largest:
        found = vocabulary_values(States(hidden, head), torch.arange(tokens), NAMES, reference)
        torch.stack(list(found)).sum().backward()
    rows, columns = logprobs_module.CPU_BLOCK
    assert largest.numbers <= rows * columns < tokens * vocabulary / 10


def test_quantities_are_those_that_the_vocabulary_has_room_for() -> None:
    assert make_model("qwen3").config.vocab_size == VOCABULARY
    model = make_model("qwen3")
    engine = Engine(model, max_tokens_in_flight=1000)
    engine.keep_reference()
    sequences = make_sequences(LAYOUT)
    found = engine.forward(sequences, vocabulary=NAMES)
    kinds = [torch.cat(found[start : start + 4]) for start in range(4, len(found), 4)]
    for name, values in zip(NAMES, kinds, strict=True):
        most = {"entropy": math.log(VOCABULARY), "reference_entropy_share": 1.0}.get(name, 1e-5)
        assert bool((values <= most + 1e-5).all())
        assert bool((values >= (-math.log(VOCABULARY) if QUANTITIES[name].negative else 0) - 1e-5).all())
