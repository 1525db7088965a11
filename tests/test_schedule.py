"""Learning rates by step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_train.training.lr_schedule import Shape, learning_rate

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
