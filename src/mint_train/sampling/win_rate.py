"""How often one policy's completions beat another's: the rate, its interval, and both for equal lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mint_train.training.intervals import wilson_interval

RESAMPLES = 1000
NEWTON_STEPS = 15
RIDGE = 1e-3
"""Keeps a fit finite where one side wins everywhere, or all lengths are equal."""
SEED = 0
LEAST_WIDTH = 1e-9
"""How far apart resampled rates are at least, unless all prompts say the same."""

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


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

    Intervals are percentiles of a bootstrap over prompts, with a fixed seed: the completions of one prompt
    are drawn together. Where all prompts say the same a bootstrap has no width, and Wilson's interval for as
    many prompts takes its place. The length-controlled rate is the chance to win at equal length in a
    logistic regression of the outcomes on tanh of the difference of lengths in units of its standard
    deviation, as AlpacaEval 2 has it (Dubois et al., 2024, arXiv 2404.04475), without its terms for models
    and prompts.

    Args:
        outcomes: one or more.
    """
    won = np.array([one.won for one in outcomes])
    longer = np.array([one.longer for one in outcomes])
    _, prompts = np.unique([one.prompt for one in outcomes], return_inverse=True)
    count = int(prompts.max()) + 1
    dice = np.random.default_rng(SEED)
    drawn = dice.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    weights = np.concatenate([np.ones((1, len(won))), drawn[:, prompts].astype(float)])
    raw = (weights * won).sum(1) / weights.sum(1)
    alike = float(np.ptp(raw)) < LEAST_WIDTH
    return WinRate(
        raw=rate(raw, count, alike=alike),
        length_controlled=rate(at_equal_length(won, longer, weights), count, alike=alike),
        wins=float((won > 0.5).mean()),
        ties=float((won == 0.5).mean()),
        losses=float((won < 0.5).mean()),
        prompts=count,
    )


def rate(values: Floats, prompts: int, *, alike: bool) -> Rate:
    """Return the first value, with the interval that the others give, or Wilson's where they are alike."""
    value = float(values[0])
    low, high = wilson_interval(value, prompts) if alike else np.quantile(values[1:], [0.025, 0.975])
    return Rate(value, float(low), float(high))


def at_equal_length(won: Floats, longer: Floats, weights: Floats) -> Floats:
    """Return the chance to win at equal length under each row of weights, by Newton's method.

    Args:
        won: `[outcomes]` from 0 to 1.
        longer: `[outcomes]`, the difference of lengths.
        weights: `[resamples, outcomes]`, what each outcome counts.
    """
    spread = longer.std()
    length = np.tanh(longer / spread) if spread else np.zeros_like(won)
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
