"""Fixed resamples of the pool, and a criterion's score of each."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sepstop.types import Criterion


def draw_resamples(pool_size: int, num_resamples: int, resample_size: int, seed: int) -> Tensor:
    """Subsets of the pool, each drawn without replacement.

    They depend on the arguments alone; the global random state is neither read nor changed.

    Args:
        pool_size: points N in the pool.
        num_resamples: number B of subsets.
        resample_size: points n in each subset; at most N.
        seed: seed of the draw.

    Returns:
        ``(B, n)`` int64 indices into the pool, on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    subsets = [
        torch.randperm(pool_size, generator=generator)[:resample_size] for _ in range(num_resamples)
    ]
    return torch.stack(subsets)


def score_resamples(
    criterion: Criterion, inputs: Mapping[str, Tensor | None], resample_indices: Tensor
) -> list[float]:
    """Score each resample with one call of the criterion.

    Args:
        criterion: see `sepstop.types.Criterion`. If it has ``on_resamples``, this gets the inputs
            of the whole pool and the resamples; otherwise it is called with the inputs of each
            resample, ``(B, n, ...)``.
        inputs: by name, the inputs of the whole pool, ``(N, ...)``; see `sepstop.criteria.INPUTS`.
            It must have all names in the criterion's ``needs``; None stands for a missing input.
        resample_indices: ``(B, n)`` int64 indices into the pool, on any device.

    Returns:
        B scores. All are NaN if a needed input is None or has a NaN or infinite entry.

    Raises:
        ValueError: the criterion did not return ``(B,)`` scores.
    """
    given = []
    for need in getattr(criterion, "needs", ("points",)):
        values = inputs[need]
        if values is None or not torch.isfinite(values).all():
            return [math.nan] * len(resample_indices)
        given.append(values)
    if hasattr(criterion, "on_resamples"):
        scores = criterion.on_resamples(*given, resample_indices.to(given[0].device))
    else:  # (N, ...) -> (B, n, ...)
        scores = criterion(*[values[resample_indices.to(values.device)] for values in given])
    if tuple(scores.shape) != (len(resample_indices),):
        raise ValueError(
            f"expected the criterion {criterion.name!r} to return ({len(resample_indices)},) "
            f"scores, got {tuple(scores.shape)}"
        )
    return scores.double().tolist()
