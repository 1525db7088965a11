"""How often one policy's completions beat another's: the rate, its interval, and both for equal lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mint_train.training.intervals import QUANTILE

RESAMPLES = 1000
NEWTON_STEPS = 15
RIDGE = 1e-3
"""Keeps a fit finite where one side wins everywhere, or all lengths are equal."""
SEED = 0
ADDED = np.array([1.0, 1.0, 0.0, 0.0])
"""The outcomes of four more prompts, at equal length, among which a bootstrap draws."""

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Integers = np.ndarray[tuple[int, ...], np.dtype[np.integer[Any]]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One comparison of a completion of A with one of B."""

    prompt: int
    """The index of its prompt."""
    won: float
    """1 where A's is better, 0 where B's is, 0.5 for a tie; the mean of both orders."""
    longer: float
    """By how many words A's is longer than B's."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of comparisons with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


@dataclass(frozen=True, slots=True)
class WinRate:
    """What some comparisons say."""

    raw: Rate
    length_controlled: Rate
    wins: float
    """The share that A wins in both orders."""
    ties: float
    losses: float
    prompts: int


def win_rate(outcomes: Sequence[Outcome]) -> WinRate:
    """Return the win rate of A over B; a tie counts half.

    Intervals are normal ones, with the standard error of a bootstrap over prompts with a fixed seed: the
    completions of one prompt are drawn together. Among the prompts are two more that A wins and two that it
    loses (Agresti and Coull, 1998, second hand), so that an interval is not too narrow where there are few,
    or all say the same. The length-controlled rate is the chance to win at equal length in a logistic
    regression of the outcomes on tanh of the difference of lengths in units of its standard deviation, as
    AlpacaEval 2 has it (Dubois et al., 2024, arXiv 2404.04475), without its terms for models and prompts.

    Args:
        outcomes: one or more.
    """
    own = np.array([one.won for one in outcomes])
    longer = np.array([one.longer for one in outcomes])
    _, prompts = np.unique([one.prompt for one in outcomes], return_inverse=True)
    count = int(prompts.max()) + 1
    weights = drawn_weights(prompts, count)
    won = np.concatenate([own, ADDED])
    return WinRate(
        raw=rate((weights * won).sum(1) / weights.sum(1), count),
        length_controlled=rate(at_equal_length(won, relative_lengths(longer), weights), count),
        wins=float((own > 0.5).mean()),
        ties=float((own == 0.5).mean()),
        losses=float((own < 0.5).mean()),
        prompts=count,
    )


def drawn_weights(prompts: Integers, count: int) -> Floats:
    """Return what each outcome counts: a row without the added prompts, one with them, one per resample.

    The last columns are of the added prompts, each of which counts as much as a prompt does on average.

    Args:
        prompts: `[outcomes]`, the index of each outcome's prompt.
        count: the number of prompts.
    """
    together = count + len(ADDED)
    drawn = np.random.default_rng(SEED).multinomial(together, np.full(together, 1 / together), size=RESAMPLES)
    times = np.concatenate([np.ones((2, together)), drawn])
    times[0, count:] = 0
    own, added = times[:, prompts], times[:, count:]
    return np.concatenate([own, added * len(prompts) / count], axis=1)


def rate(values: Floats, count: int) -> Rate:
    """Return a rate with its normal interval, within 0 and 1.

    Args:
        values: the rate, the one with the added prompts, and those of the resamples.
        count: the number of prompts.
    """
    value, centre, together = float(values[0]), float(values[1]), count + len(ADDED)
    half = QUANTILE * float(values[2:].std()) * math.sqrt(together / (together - 1))
    return Rate(value, max(0.0, min(centre - half, value)), min(1.0, max(centre + half, value)))


def relative_lengths(longer: Floats) -> Floats:
    """Return tanh of differences of lengths in units of their standard deviation, 0 for the added prompts."""
    spread = longer.std()
    own = np.tanh(longer / spread) if spread else np.zeros_like(longer)
    return np.concatenate([own, np.zeros(len(ADDED))])


def at_equal_length(won: Floats, length: Floats, weights: Floats) -> Floats:
    """Return the chance to win at equal length under each row of weights, by Newton's method.

    Args:
        won: `[outcomes]` from 0 to 1.
        length: `[outcomes]`, relative differences of lengths.
        weights: `[resamples, outcomes]`, what each outcome counts.
    """
    base, slope = np.zeros((2, len(weights)))
    for _ in range(NEWTON_STEPS):
        chance = 1 / (1 + np.exp(-(base[:, None] + slope[:, None] * length)))
        missed, spreads = weights * (won - chance), weights * chance * (1 - chance)
        first, second = missed.sum(1) - RIDGE * base, missed @ length - RIDGE * slope
        # the matrix of second derivatives is [[of_base, of_both], [of_both, of_slope]]
        of_base, of_both = spreads.sum(1) + RIDGE, spreads @ length
        of_slope = spreads @ length**2 + RIDGE
        determinant = of_base * of_slope - of_both**2
        base = base + (of_slope * first - of_both * second) / determinant
        slope = slope + (of_base * second - of_both * first) / determinant
    return np.asarray(1 / (1 + np.exp(-base)))
