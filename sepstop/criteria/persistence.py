"""Total persistence: how long all components of the cloud live, taken together."""

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
    resamples: Tensor | None = None,
) -> Tensor:
    """``Σ p_i^power`` over the finite H0 death times: ``(B, n, D)`` -> ``(B,)``.

    Args:
        normalize: divide each point by its L2 norm first.
        resamples: as for `sepstop.h0_deaths`.

    References:
        arXiv:2512.15285.
    """
    clouds = torch.nn.functional.normalize(points.double(), dim=-1) if normalize else points
    return h0_deaths(clouds, resamples).double().pow(power).sum(dim=-1)


@dataclass(frozen=True)
class TotalPersistence:
    """`total_persistence` as a criterion; clusters that close up have less of it."""

    power: float = 1.0
    normalize: bool = False
    name: ClassVar[str] = "total_persistence"
    higher_is_better: ClassVar[bool] = False

    def __call__(self, points: Tensor) -> Tensor:
        return total_persistence(points, self.power, self.normalize)

    def on_resamples(self, points: Tensor, resamples: Tensor) -> Tensor:
        return total_persistence(points, self.power, self.normalize, resamples)
