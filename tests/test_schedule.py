"""Learning rates by step, and what the optimiser is given."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_train.errors import OptionError
from mint_train.groups.order import Order, epoch_order
from mint_train.groups.step_count import count_steps
from mint_train.sdk import types
from mint_train.settings.merge import load_settings
from mint_train.training.lr_schedule import Shape, learning_rate
from mint_train.training.runner import adam_params

SHAPES: list[Shape] = ["constant", "linear", "cosine"]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("constant", [1.0, 2.0, 3.0, 3.0, 3.0, 3.0]),
        ("linear", [1.0, 2.0, 3.0, 2.25, 1.5, 0.75]),
        ("cosine", [1.0, 2.0, 3.0, 2.560660171779821, 1.5, 0.4393398282201788]),
    ],
)
def test_by_hand(shape: Shape, expected: list[float]) -> None:
    rates = [learning_rate(step, 6, 3.0, shape, 2) for step in range(1, 7)]
    assert rates == pytest.approx(expected)


@given(shape=st.sampled_from(SHAPES), steps=st.integers(1, 50), warmup=st.integers(0, 60))
def test_every_step_trains_and_none_exceeds_the_peak(shape: Shape, steps: int, warmup: int) -> None:
    rates = [learning_rate(step, steps, 1e-4, shape, warmup) for step in range(1, steps + 1)]
    assert all(0 < rate <= 1e-4 for rate in rates)
    rising, falling = rates[:warmup], rates[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)


def test_the_optimiser_gets_what_the_settings_say() -> None:
    given = load_settings(
        {"loss": "dpo", "lr": 3e-4, "adam_beta1": 0.8, "adam_beta2": 0.99, "adam_eps": 1e-8, "grad_clip": 1}
    )
    params = adam_params(given, 3, 1)
    assert (params.learning_rate, params.beta1, params.beta2, params.eps) == (3e-4, 0.8, 0.99, 1e-8)
    assert (params.weight_decay, params.grad_clip_norm) == (0.0, 1.0)


def test_the_constants_of_adamw_are_the_sdks_own_unless_given() -> None:
    params = adam_params(load_settings({"loss": "dpo"}), 3, 1)
    sdk = types.AdamParams()
    assert (params.beta1, params.beta2, params.eps) == (sdk.beta1, sdk.beta2, sdk.eps)


def test_a_warm_up_longer_than_an_epoch_is_refused() -> None:
    given = {"loss": "dpo", "data": "pairs.jsonl", "batch_size": 4}
    assert count_steps(load_settings(given | {"warmup_steps": 3}), 12) == 3
    with pytest.raises(OptionError, match="--warmup-steps 4: the warm-up is longer than the run's 3 steps"):
        count_steps(load_settings(given | {"warmup_steps": 4}), 12)


@given(groups=st.integers(1, 300), size=st.integers(1, 9), epoch=st.integers(0, 1))
def test_groups_of_similar_length_come_in_the_order_that_sorting_lists_gives(
    groups: int, size: int, epoch: int
) -> None:
    lengths = [index * 7 % 5 for index in range(groups)]
    drawn = random.Random(f"2/{epoch}")
    shuffled = list(range(groups))
    drawn.shuffle(shuffled)
    together = max(1, min(groups // (4 * size), 50)) * size
    expected: list[int] = []
    for start in range(0, groups, together):
        expected += sorted(shuffled[start : start + together], key=lengths.__getitem__, reverse=True)
    steps = [expected[n * size : (n + 1) * size] for n in range(groups // size)]
    drawn.shuffle(steps)
    expected = [index for step in steps for index in step] + expected[len(steps) * size :]
    assert epoch_order(Order(groups, size, 2, lengths), epoch) == expected
