"""Fixed resamples of the pool, and the uncertainty that they give.

Each resample is a subset of n of the pool's N points. The spread of a statistic over such
subsets understates its sampling error, since the subsets overlap; the delete-d jackknife
(d = N - n points left out) multiplies the variance by n / (N - n) to correct that.

References:
    Shao & Wu (1989), A General Theory for Jackknife Variance Estimation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import stdtr, stdtrit
from torch import Tensor, nn

from sepstop.types import Criterion


def draw_resamples(pool_size: int, resamples: int, resample_size: int, seed: int) -> Tensor:
    """``(B, n)`` int64 index sets on the CPU, each without replacement, from its own generator."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [torch.randperm(pool_size, generator=generator)[:resample_size] for _ in range(resamples)]
    )


def score_resamples(
    criterion: Criterion, inputs: Mapping[str, Tensor | nn.Module | None], resamples: Tensor
) -> list[float]:
    """The criterion on each resample; all NaN where an input is missing or not finite.

    Args:
        criterion: called once, on all resamples; or its `on_resamples`, if it has one, with
            what it needs of the whole pool.
        inputs: what the criterion may need, by name: of the whole pool ``(N, ...)``, or the model.
        resamples: ``(B, n)`` indices.

    Raises:
        ValueError: the criterion returned neither ``(B,)`` scores nor one for all, ``()``.
    """
    given: list[Any] = [inputs[need] for need in getattr(criterion, "needs", ("points",))]
    tensors = [values for values in given if not isinstance(values, nn.Module)]
    if any(values is None or not torch.isfinite(values).all() for values in tensors):
        return [math.nan] * len(resamples)
    if hasattr(criterion, "on_resamples"):
        chosen = resamples.to(tensors[0].device)
        return _checked(criterion.on_resamples(*given, chosen), criterion, resamples)
    scores = criterion(
        *[
            values if isinstance(values, nn.Module) else values[resamples.to(values.device)]
            for values in given  # (N, ...) -> (B, n, ...)
        ]
    )
    if scores.ndim == 0 and len(tensors) < len(given):
        scores = scores.expand(len(resamples))
    return _checked(scores, criterion, resamples)


def _checked(scores: Tensor, criterion: Criterion, resamples: Tensor) -> list[float]:
    if tuple(scores.shape) != (len(resamples),):
        raise ValueError(
            f"expected the criterion {criterion.name!r} to return ({len(resamples)},) scores, "
            f"got {tuple(scores.shape)}"
        )
    return scores.double().tolist()


def standard_error(values: Sequence[float], resample_size: int, pool_size: int) -> float:
    """Delete-d jackknife standard error of the mean of ``values``, one value a resample.

    NaN with fewer than two values or when nothing was left out of a resample.
    """
    left_out = pool_size - resample_size
    if len(values) < 2 or left_out < 1:
        return math.nan
    return math.sqrt(resample_size / left_out) * float(np.std(values, ddof=1))


def interval(values: Sequence[float], resample_size: int, pool_size: int) -> tuple[float, float]:
    """95 % Student-t interval of the mean of ``values``; NaN where there is no standard error."""
    if not np.isfinite(values).all():
        return math.nan, math.nan
    centre = float(np.mean(values))
    half = stdtrit(len(values) - 1, 0.975) * standard_error(values, resample_size, pool_size)
    return float(centre - half), float(centre + half)


def improvement_p_value(gains: Sequence[float], resample_size: int, pool_size: int) -> float:
    """One-sided p-value that the mean of the paired ``gains`` is above zero.

    Raises:
        ValueError: fewer than two gains, or resamples that leave no point out.
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
