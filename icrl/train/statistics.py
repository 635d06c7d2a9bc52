"""Intervals: how far a measured mean can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

from icrl.errors import DataError, MissingExtraError

__all__ = ["Interval", "bootstrap_interval", "mean_interval", "seeds_interval", "wilson_interval"]

Interval = tuple[float, float]
"""Lower and upper end."""

_Z = NormalDist().inv_cdf(0.975)
_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""97.5 % quantiles of Student's distribution for 1 to 30 degrees of freedom."""


def mean(values: Sequence[float]) -> float:
    """Return the mean; 0 where there are no values, as of a rate of which nothing was counted.

    Example:
        >>> mean([1.0, 0.0]), mean([])
        (0.5, 0.0)
    """
    return sum(values) / len(values) if values else 0.0


def wilson_interval(successes: float, n: int, *, level: float = 0.95) -> Interval:
    """Return Wilson's score interval of a proportion; unlike the bootstrap's, it has a width at 0 and 1 too.

    Source: E. B. Wilson, JASA 22 (1927), 209-212; recommended by Brown, Cai and DasGupta, Statistical Science 16
    (2001), 101-133.

    Args:
        successes: How many of the trials succeeded.
        n: Trials.
        level: Coverage.

    Raises:
        DataError: There are no trials, or more successes than trials.

    Example:
        >>> [round(end, 3) for end in wilson_interval(400, 400)]
        [0.99, 1.0]
    """
    if not 0 <= successes <= n or n < 1:
        raise DataError(f"interval: {successes:g} successes of {n} trials")
    z = NormalDist().inv_cdf((1 + level) / 2)
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding must not push an end past a proportion that the interval touches.
    return min(p, max(0.0, (centre - half) / scale)), max(p, min(1.0, (centre + half) / scale))


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the percentile bootstrap interval of the mean.

    Source: B. Efron, Annals of Statistics 7 (1979), 1-26; percentile form of Efron and Tibshirani (1993), ch. 13.

    Args:
        values: [N] independent measurements.
        level: Coverage.
        resamples: Resampled means to draw.
        seed: Selects the resamples; the same values and seed give the same interval.

    Raises:
        DataError: There are no values.
        MissingExtraError: numpy is absent.

    Example:
        >>> low, high = bootstrap_interval([0.0, 1.0] * 50)
        >>> low < 0.5 < high
        True
    """
    if not len(values):
        raise DataError("interval: there are no values")
    try:
        import numpy as np
    except ImportError as error:
        raise MissingExtraError("numpy", extra="search") from error

    array = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed)
    # One row at a time bounds the memory; a row is one vectorised draw.
    means = [array[draws.integers(0, len(array), len(array))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> Interval:
    """Return the interval of a mean: Wilson's where every value is 0 or 1, the bootstrap's otherwise.

    Raises:
        DataError: There are no values.

    Example:
        >>> mean_interval([1.0, 0.0, 1.0, 1.0]) == wilson_interval(3, 4)
        True
    """
    if values and set(values) <= {0.0, 1.0}:
        return wilson_interval(sum(values), len(values), level=level)
    return bootstrap_interval(values, level=level, seed=seed)


def seeds_interval(means: Sequence[float]) -> Interval:
    """Return Student's 95 % interval of the mean over independent seeds.

    Few seeds are too few to resample: a bootstrap over three covers far less than it says. Source: Student,
    Biometrika 6 (1908), 1-25; above 30 degrees of freedom, the first term of the Cornish-Fisher expansion.

    Args:
        means: [S] one result a seed; with a single one, the interval is unbounded.

    Raises:
        DataError: There are no results.

    Example:
        >>> [round(end, 3) for end in seeds_interval([0.98, 0.99, 1.0])]
        [0.965, 1.015]
    """
    if not means:
        raise DataError("interval: there are no values")
    if len(means) == 1:
        return -math.inf, math.inf
    freedom = len(means) - 1
    quantile = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _Z + (_Z**3 + _Z) / (4 * freedom)
    half = quantile * stdev(means) / math.sqrt(len(means))
    centre = fmean(means)
    return centre - half, centre + half
