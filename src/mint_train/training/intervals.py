"""95 % confidence intervals of means and shares."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from statistics import NormalDist

CONFIDENCE = 0.95
QUANTILE = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Average values, each with its weight."""
    return math.fsum(map(operator.mul, values, weights)) / math.fsum(weights)


def confidence_interval(
    values: Sequence[float], weights: Sequence[float] | None = None, *, share: bool
) -> tuple[float, float]:
    """Return the 95 % confidence interval of a mean.

    For a share it is Wilson's score interval, otherwise the normal approximation.

    Args:
        values: two or more.
        weights: what each counts; without them, 1.
        share: whether each is 0 or 1; such values all count the same.
    """
    count = len(values)
    weights = weights or [1.0] * count
    mean = weighted_mean(values, weights)
    if share:
        return wilson_interval(mean, count)
    squares = math.fsum((weight * (value - mean)) ** 2 for value, weight in zip(values, weights, strict=True))
    half = QUANTILE * math.sqrt(squares / (count - 1) / (math.fsum(weights) ** 2 / count))
    return mean - half, mean + half


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's score interval of a share (Wilson, 1927).

    It stays within 0 and 1, and keeps a width where the share is 0 or 1.

    Args:
        share: from 0 to 1.
        count: the independent values that it is a share of, one or more.
    """
    shrink = 1 + QUANTILE**2 / count
    centre = (share + QUANTILE**2 / (2 * count)) / shrink
    half = QUANTILE / shrink * math.sqrt(share * (1 - share) / count + QUANTILE**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)
