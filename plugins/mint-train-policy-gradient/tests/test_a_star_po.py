"""A*-PO by hand, by a second writing, and on rows that lack what it needs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rollout_batches import batch_of, random_groups

from mint_train.conformance.material import small_tokenizer
from mint_train.errors import RowError
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin
from mint_train.rendering.renderer import Renderer
from mint_train.testing import make_batch, make_group, make_logprobs
from mint_train_policy_gradient.a_star_po import optimal_value


def opened(**options: object) -> Loss:
    return Loss.of(load_plugin("a-star-po"), options)


def test_value_is_the_one_worked_by_hand() -> None:
    """One completion of h 1.5 and reward 1, one of h -1 and reward 0, whose prompt is worth 0.25."""
    attached = [
        {"reward": reward, "count": 2.0, "scored": 1.0, "advantage": 0.0, "optimal_value": 0.25}
        for reward in (1.0, 0.0)
    ]
    group = make_group([[3, 4], [5]], attached, [[-2.0, -1.0], [-1.0]])
    policy = make_logprobs([[-1.0, -0.5], [-2.0]])
    value, metrics = opened(beta_2=0.1).compute(make_batch(group), policy, {})
    assert value.item() == pytest.approx(((0.15 - 0.75) ** 2 + (-0.1 + 0.25) ** 2) / 2)
    assert metrics["optimal_value"] == 0.25
    assert metrics["implicit_reward"] == pytest.approx((0.15 - 0.1) / 2)


def test_value_and_gradient_are_those_of_a_second_writing() -> None:
    groups = random_groups()
    batch, policy = batch_of(groups, optimal_value=0.3)
    value, _ = opened(beta_2=0.2).compute(batch, policy, {})
    found = torch.autograd.grad(value, policy)
    samples = [sample for group in groups for sample in group]
    leaves = [torch.tensor(sample.policy, dtype=torch.float64, requires_grad=True) for sample in samples]
    squares = [
        (0.2 * (own.sum() - sum(sample.reference)) + 0.3 - sample.reward) ** 2
        for own, sample in zip(leaves, samples, strict=True)
    ]
    expected = torch.stack(squares).mean()
    assert value.item() == pytest.approx(expected.item(), abs=1e-10)
    for gradient, own in zip(found, torch.autograd.grad(expected, leaves), strict=True):
        assert gradient.tolist() == pytest.approx([0.0, *own.tolist()], abs=1e-10)


def test_a_prompts_value_lies_between_the_mean_and_the_best() -> None:
    # half of the mass at 1, half at 0: 0.5 log((e^2 + 1) / 2)
    assert optimal_value([1.0, 0.0], 0.5) == pytest.approx(0.5 * math.log((math.exp(2) + 1) / 2))
    assert optimal_value([1.0, 0.0], 1e-4) == pytest.approx(1.0, abs=1e-4)
    assert optimal_value([1.0, 0.0], 1e4) == pytest.approx(0.5, abs=1e-4)
    assert optimal_value([-1e6, -1e6], 0.5) == -1e6


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ({"completions": ["a", "b"], "rewards": [1, 0]}, optimal_value([1, 0], 0.5)),
        (
            {"completion": "a", "reward": 0, "reference_rewards": [1, 1, 1, 0]},
            optimal_value([1, 1, 1, 0], 0.5),
        ),
        ({"completions": ["a", "b"], "rewards": [1, 0], "reference_rewards": "[0, 0]"}, 0.0),
    ],
)
def test_the_rewards_of_the_reference_stand_in_the_row_or_are_its_own(
    row: dict[str, Any], value: float
) -> None:
    loss = opened()
    datums = loss.flatten(loss.parse_row({"prompt": "Say a."} | row), Renderer(small_tokenizer()))
    assert [datum.attached["optimal_value"] for datum in datums] == [value] * len(datums)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completions": ["a", "b"], "advantages": [1, 0]}, "rewards.*: are missing"),
        ({"completion": "a", "reward": 1}, "reference_rewards.*: is missing"),
        ({"completion": "a", "reward": 1, "reference_rewards": []}, "reference_rewards.*: must be a list"),
        ({"completion": "a", "reward": 1, "reference_rewards": [1, "x"]}, r"reference_rewards\[1\]"),
    ],
)
def test_a_row_without_what_it_needs_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        opened().parse_row({"prompt": "Say a."} | row)
