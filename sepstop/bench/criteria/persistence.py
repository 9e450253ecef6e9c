"""Total persistence of the embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sepstop.homology import h0_deaths


def total_persistence(
    points: Tensor,
    power: float = 1.0,
    normalize: bool = False,
    resample_indices: Tensor | None = None,
) -> Tensor:
    """Sum of the finite H0 death times: ``sum p_i^power``.

    Args:
        points: ``(B, n, D)``, or ``(N, D)`` with ``resample_indices``; any float dtype, any device.
        power: exponent of each death time.
        normalize: divide each point by its L2 norm first.
        resample_indices: ``(B, n)`` int64 index sets into one cloud ``(N, D)``.

    Returns:
        ``(B,)`` float64, on the same device; at least 0, in the distance unit of ``points`` to the
        given power.

    Raises:
        ValueError: as `sepstop.homology.h0_deaths`.

    References:
        arXiv:2512.15285.
    """
    clouds = torch.nn.functional.normalize(points.double(), dim=-1) if normalize else points
    return h0_deaths(clouds, resample_indices).double().pow(power).sum(dim=-1)


@dataclass(frozen=True)
class TotalPersistence:
    """`total_persistence` as a criterion: clusters that close up have less of it.

    Args:
        power, normalize: as in `total_persistence`.
    """

    power: float = 1.0
    normalize: bool = False
    name: ClassVar[str] = "total_persistence"
    higher_is_better: ClassVar[bool] = False

    def __call__(self, points: Tensor) -> Tensor:
        """``(B, n, D)`` -> ``(B,)``; see `total_persistence`."""
        return total_persistence(points, self.power, self.normalize)

    def on_resamples(self, points: Tensor, resample_indices: Tensor) -> Tensor:
        """``(N, D)`` and ``(B, n)`` -> ``(B,)``; see `total_persistence`."""
        return total_persistence(points, self.power, self.normalize, resample_indices)
