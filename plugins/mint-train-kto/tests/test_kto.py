from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mint_train
from mint_train.batches.batch import Batch
from mint_train.errors import ContractError, DataError, DoesNotFit, OptionError, RowError
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin
from mint_train.rendering.renderer import Renderer
from mint_train.testing import Check, conformance_checks, make_batch, make_group, make_logprobs
from mint_train_kto import plugin
from mint_train_kto.apo_zero_unpaired import APOZeroUnpairedOptions
from mint_train_kto.plugin import KTOOptions
from mint_train_kto.rows import FORMS, RatedCompletion, with_unrelated

ReadLosses = Callable[[Path], list[float]]

UP, DOWN = {"label": 1.0}, {"label": 0.0}


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def two_rated(*, with_baseline: bool) -> tuple[Batch, list[torch.Tensor]]:
    """A desirable one of log-ratio 1.0, an undesirable one of -0.5; the unrelated ones have 0.2 and 0.6."""
    first = ([[3, 4], [5]], [UP, UP], [[-1.5, -0.5], [-1.7]], [[-0.5, -0.5], [-1.5]])
    second = ([[6], [7]], [DOWN, DOWN], [[-2.5], [-1.6]], [[-3.0], [-1.0]])
    size = 2 if with_baseline else 1
    groups = [
        make_group(ids[:size], own[:size], reference[:size]) for ids, own, reference, _ in (first, second)
    ]
    policy = make_logprobs([values for *_, rows in (first, second) for values in rows[:size]])
    return make_batch(*groups), policy


def test_value_by_hand() -> None:
    batch, policy = two_rated(with_baseline=True)
    options = KTOOptions(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    value, metrics = plugin.compute_loss(batch, policy, options)
    z_0 = (0.2 + 0.6) / 2
    expected = (2 * (1 - sigmoid(0.5 * (1.0 - z_0))) + 3 * (1 - sigmoid(0.5 * (z_0 + 0.5)))) / 2
    assert value.item() == pytest.approx(expected, abs=1e-12)
    assert metrics == {
        "accuracy": 1.0,
        "kl": pytest.approx(z_0),
        "rewards/desirable": pytest.approx(0.5),
        "rewards/undesirable": pytest.approx(-0.25),
    }


def test_no_gradient_passes_through_the_baseline() -> None:
    batch, policy = two_rated(with_baseline=True)
    value, _ = plugin.compute_loss(batch, policy, KTOOptions(beta=0.5))
    value.backward()
    gain = 0.5 * (1.0 - 0.4)
    slope = -0.5 * sigmoid(gain) * (1 - sigmoid(gain)) / 2
    assert policy[0].grad is not None
    assert policy[0].grad.tolist() == pytest.approx([0.0, slope, slope])
    for unrelated in policy[1::2]:
        assert unrelated.grad is not None
        assert not unrelated.grad.any()


def test_a_negative_estimate_of_the_kl_counts_as_zero() -> None:
    batch, policy = two_rated(with_baseline=True)
    lower = [logprob - 5 * (number % 2) for number, logprob in enumerate(policy)]
    _, metrics = plugin.compute_loss(batch, lower, KTOOptions())
    assert metrics["kl"] == 0.0


def test_baseline_of_the_batch_by_hand() -> None:
    batch, policy = two_rated(with_baseline=False)
    value, metrics = plugin.compute_loss(batch, policy, KTOOptions(beta=1.0, baseline="batch"))
    z_0 = (1.0 - 0.5) / 2
    assert metrics["kl"] == pytest.approx(z_0)
    assert value.item() == pytest.approx((1 - sigmoid(1.0 - z_0) + 1 - sigmoid(z_0 + 0.5)) / 2)


def test_apo_zero_unpaired_by_hand() -> None:
    batch, policy = two_rated(with_baseline=False)
    value, metrics = plugin.compute_loss(batch, policy, APOZeroUnpairedOptions(beta=2.0))
    assert value.item() == pytest.approx((1 - sigmoid(2.0 * 1.0) + sigmoid(2.0 * -0.5)) / 2)
    assert metrics["kl"] == 0.0


@pytest.mark.parametrize("name", ["kto", "apo-zero-unpaired"])
def test_the_gradient_has_the_sign_of_the_label(name: str) -> None:
    loss = Loss.of(load_plugin(name))
    batch, policy = two_rated(with_baseline=name == "kto")
    value, _ = loss.evaluate(batch, policy, {})
    value.backward()
    up, down = policy[0].grad, policy[-2 if name == "kto" else -1].grad
    assert up is not None
    assert (up[1:] < 0).all()
    assert down is not None
    assert (down[1:] > 0).all()


@pytest.mark.parametrize("check", conformance_checks("kto"), ids=str)
def test_kto_conforms(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", conformance_checks("apo-zero-unpaired"), ids=str)
def test_apo_zero_unpaired_conforms(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", conformance_checks("kto", options={"baseline": "batch"}), ids=str)
def test_kto_with_the_baseline_of_the_batch_conforms(check: Check) -> None:
    check()


def test_rows_in_all_forms() -> None:
    turn = [{"role": "user", "content": "Hi"}]
    answer = {"role": "assistant", "content": "Hello"}
    expected = RatedCompletion(turn, "Hello", True)
    assert FORMS.read({"prompt": turn, "completion": "Hello", "label": True}).example == expected
    assert FORMS.read({"messages": [*turn, answer], "label": True}).example == expected
    sharegpt = [{"from": "human", "value": "Hi"}]
    assert FORMS.read({"conversations": sharegpt, "completion": [answer], "label": True}).example == expected
    assert FORMS.read({"prompt": "Hi", "completion": "Hello", "label": False}).example.desirable is False


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"completion": "b", "label": True}, "prompt"),
        ({"prompt": "a", "label": True}, "completion"),
        ({"prompt": "a", "completion": "b"}, "label"),
        ({"prompt": "a", "completion": "b", "label": 3}, "label"),
        ({"prompt": "a", "completion": "b", "label": "perhaps"}, "label"),
        ({"prompt": "a", "completion": " ", "label": True}, "completion"),
        ({"messages": [{"role": "assistant", "content": "b"}], "label": True}, "messages"),
    ],
)
def test_a_bad_row_names_its_field(row: dict[str, object], field: str) -> None:
    with pytest.raises(RowError) as raised:
        FORMS.read(row)
    assert raised.value.field == field


def test_unrelated_completions_are_of_other_prompts() -> None:
    rated = [RatedCompletion(*values) for values in (("a", "1", True), ("a", "2", False), ("b", "3", True))]
    assert [example.unrelated for example in with_unrelated(rated)] == ["3", "3", "1"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("123")), min_size=1, max_size=12))
def test_the_next_one_around_the_data_is_taken(made: list[tuple[str, str]]) -> None:
    """Against the definition, looked up in a list that holds all."""
    rated = [RatedCompletion(prompt, completion, True) for prompt, completion in made]
    expected = [
        next(
            (other[1] for other in [*made[n:], *made[:n]] if other[0] != own[0] and other[1] != own[1]), None
        )
        for n, own in enumerate(made)
    ]
    if None in expected:
        with pytest.raises(DataError):
            list(with_unrelated(rated))
    else:
        assert [example.unrelated for example in with_unrelated(rated)] == expected
        assert [(example.prompt, example.completion) for example in with_unrelated(rated)] == made


def test_only_what_waits_is_held() -> None:
    """The first examples come out before the last ones are read."""
    read = []

    def rows() -> Iterator[RatedCompletion]:
        for n in range(1000):
            read.append(n)
            yield RatedCompletion(f"p{n}", f"c{n}", True)

    assert next(with_unrelated(rows())).unrelated == "c1"
    assert len(read) == 2


def test_one_prompt_has_no_unrelated_completion() -> None:
    with pytest.raises(DataError, match=r"same prompt.*baseline=batch"):
        list(with_unrelated([RatedCompletion("a", "1", True), RatedCompletion("a", "2", False)]))
    with pytest.raises(DataError, match=r"example 1.*baseline=batch"):
        list(with_unrelated([RatedCompletion("a", "1", True), RatedCompletion("b", "1", False)]))


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (make_group([[3]], [UP]), "1 datum; "),
        (make_group([[3], []], [UP, UP]), "unrelated completion has no trained token"),
        (make_group([[3], [4]], [{}, {}]), "no label"),
        (make_group([[3], [3]], [UP, UP]), "unrelated completion is equal to completion"),
    ],
)
def test_the_contract(broken: mint_train.Batch, problem: str) -> None:
    good = make_group([[3], [4]], [UP, UP])
    loss = Loss.of(load_plugin("kto"))
    loss.check_batch(make_batch(good))
    with pytest.raises(ContractError, match=f"rows:1: example 1.*{problem}"):
        loss.check_batch(make_batch(good, broken))


def test_a_cut_completion_equal_to_its_baseline_does_not_fit() -> None:
    loss = Loss.of(load_plugin("kto"))
    from mint_train.conformance.material import small_tokenizer

    example = RatedCompletion("Say it.", "the same start", True, "the same end")
    prompt_and_one = (
        1 + len(loss.flatten(example, Renderer(small_tokenizer()))[0].datum.model_input.to_ints()) - 4
    )
    with pytest.raises(DoesNotFit):
        loss.flatten(example, Renderer(small_tokenizer(), prompt_and_one))


def test_kto_needs_its_reference() -> None:
    with pytest.raises(OptionError, match="defined against a reference"):
        Loss.of(load_plugin("kto"), {"reference": "none"})


@pytest.mark.parametrize("name", ["kto", "apo-zero-unpaired"])
def test_training_lowers_the_loss(name: str, tmp_path: Path, read_losses: ReadLosses) -> None:
    result = mint_train.train(name, steps=4, lr=1e-2, batch_size=10, backend="local", output=tmp_path / "run")
    losses = read_losses(tmp_path / "run")
    # before the first step policy and reference are one, so each value is lambda / 2
    assert losses[0] == pytest.approx(0.5, abs=1e-4)
    assert losses[-1] < losses[0] - 0.01
    assert result.metrics["rewards/desirable"] > result.metrics["rewards/undesirable"]
