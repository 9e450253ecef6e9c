"""Uncertainty of a score over resamples: standard error, interval and p-value.

Each resample is a subset of n of the pool's N points. The subsets overlap, so the spread of a
statistic over them understates its sampling error. The delete-d jackknife, with d = N - n points
left out, corrects this: it multiplies the variance by n / (N - n).

References:
    Shao & Wu (1989), A General Theory for Jackknife Variance Estimation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr, stdtrit


def standard_error(values: Sequence[float], resample_size: int, pool_size: int) -> float:
    """Delete-d jackknife standard error of the mean of ``values``.

    Args:
        values: the B values of a statistic, one per resample.
        resample_size: points n in each resample.
        pool_size: points N in the pool.

    Returns:
        The standard error, in the unit of ``values``. NaN for fewer than two values, or if the
        resamples leave no point out.

    >>> standard_error([1.0, 2.0, 3.0], resample_size=80, pool_size=100)  # sqrt(80 / 20) * 1
    2.0
    """
    left_out = pool_size - resample_size
    if len(values) < 2 or left_out < 1:
        return math.nan
    return math.sqrt(resample_size / left_out) * float(np.std(values, ddof=1))


def interval(values: Sequence[float], resample_size: int, pool_size: int) -> tuple[float, float]:
    """95 % Student-t interval of the mean of ``values``.

    Args:
        values, resample_size, pool_size: as in `standard_error`.

    Returns:
        The lower and the upper bound, in the unit of ``values``. Both are NaN if a value is not
        finite or there is no `standard_error`.

    >>> interval([0.5, 0.5, 0.5], resample_size=50, pool_size=100)  # no spread
    (0.5, 0.5)
    """
    if not np.isfinite(values).all():
        return math.nan, math.nan
    center = float(np.mean(values))
    half = stdtrit(len(values) - 1, 0.975) * standard_error(values, resample_size, pool_size)
    return float(center - half), float(center + half)


def improvement_p_value(gains: Sequence[float], resample_size: int, pool_size: int) -> float:
    """One-sided p-value of the hypothesis that the mean of ``gains`` is not above zero.

    Args:
        gains: differences of two scores, one per resample; both scores use the same resamples.
        resample_size, pool_size: as in `standard_error`.

    Returns:
        The p-value of Student's t-test, from 0 to 1. 0 or 1 if all gains are equal.

    Raises:
        ValueError: fewer than two gains, or resamples that leave no point out.

    >>> improvement_p_value([0.25, 0.25], resample_size=50, pool_size=100)  # a sure gain
    0.0
    """
    error = standard_error(gains, resample_size, pool_size)
    if math.isnan(error):
        raise ValueError(
            "a significant improvement needs records with at least 2 resamples that leave "
            f"points out, got {len(gains)} resamples of {resample_size} of {pool_size} points"
        )
    gain = float(np.mean(gains))
    if error == 0:
        return 0.0 if gain > 0 else 1.0
    return float(stdtr(len(gains) - 1, -gain / error))
