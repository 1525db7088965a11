"""Going ahead of a service's answers: each form is tried, and the faster one stays as long as it is."""

from __future__ import annotations

import pytest

from mint_train.training.pipelining import (
    CLEARLY_FASTER,
    LOOKS_BEFORE_CHANGE,
    NEAR_SECONDS,
    STEPS_PER_LOOK,
    UNSETTLED_STEPS,
    Pipelining,
)


def run(pipelining: Pipelining, looks: int, ahead: float, awaited: float) -> list[int]:
    """Run steps that take as long as their form does; return how many may be in flight between looks."""
    chosen = []
    for _ in range(looks):
        chosen.append(pipelining.most_in_flight)
        for _ in range(STEPS_PER_LOOK):
            assert pipelining.most_in_flight == chosen[-1]
            pipelining.note(ahead if chosen[-1] else awaited)
    return chosen


@pytest.mark.parametrize(
    ("awaited", "stays"),
    [(0.1, 0), (CLEARLY_FASTER - 0.01, 0), (CLEARLY_FASTER + 0.01, 1), (1.0, 1), (9.0, 1)],
)
def test_both_forms_are_tried_and_the_faster_one_stays(awaited: float, stays: int) -> None:
    assert run(Pipelining(), 10, 1.0, awaited) == [1, 1, 1, 0, *[stays] * 6]
    assert run(Pipelining(ahead=False), 10, 1.0, awaited) == [0, 0, 0, 1, *[stays] * 6]


def test_the_round_trip_decides_how_a_run_begins() -> None:
    far, near = Pipelining.beginning(NEAR_SECONDS * 2), Pipelining.beginning(NEAR_SECONDS / 2)
    assert (far.most_in_flight, near.most_in_flight) == (1, 0)


def test_a_form_that_becomes_slower_than_the_other_was_is_left() -> None:
    pipelining = Pipelining()
    assert run(pipelining, 6, 1.0, 0.5) == [1, 1, 1, 0, 0, 0]
    assert run(pipelining, 4, 1.0, 3.0) == [0, 1, 1, 1]
    assert run(pipelining, 4, 6.0, 3.0) == [1, 0, 0, 0]


def test_what_still_holds_the_other_form_and_slow_steps_do_not_count() -> None:
    pipelining = Pipelining(looks=LOOKS_BEFORE_CHANGE - 1)
    for seconds in [*[0.01] * UNSETTLED_STEPS, 1.0, 1.0, 1.0, 1.0, 7.0, 7.0]:
        pipelining.note(seconds)
    assert pipelining.known == {True: 1.0}
    for seconds in [*[99.0] * UNSETTLED_STEPS, 0.5, 9.0, 0.5, 9.0, 0.5, 0.5]:
        pipelining.note(seconds)
    assert pipelining.known == {True: 1.0, False: 0.5}
    assert pipelining.most_in_flight == 0
