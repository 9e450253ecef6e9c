"""Coverage of the 95 % interval of a score.

    python scripts/check_interval.py

Pools are drawn from a mixture of Gaussians, so many draws give the expected score: the separability
of n fresh points, and the scores of a classifier's predictions in a pool of N. A corrupted copy is
a point moved by half the spread. A 95 % interval should contain the expected score in 95 % of the
pools.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm.auto import tqdm

from sepstop import h0_separability
from sepstop.criteria.neighbor_mi import neighbor_mi
from sepstop.criteria.robust_mi import robust_mi
from sepstop.measure.neighbors import nearest_neighbors
from sepstop.measure.resampling import draw_resamples
from sepstop.statistics import interval

MIXTURES = ((2, 0.05), (5, 0.1), (20, 0.1), (20, 0.5), (20, 2), (20, 4))
"""Numbers of classes, and the spread of each."""


@dataclass(frozen=True)
class Mixture:
    """Gaussian classes of one spread; ``centers`` is ``(k, D)``."""

    centers: Tensor
    spread: float
    generator: torch.Generator

    def draw(self, count: int) -> Tensor:
        """``(count, D)`` points."""
        label = torch.randint(len(self.centers), (count,), generator=self.generator)
        noise = torch.randn(count, self.centers.shape[1], generator=self.generator)
        return self.centers[label] + self.spread * noise

    def separability(self, points: Tensor, resample_indices: Tensor) -> Tensor:
        """``(N, D)`` -> ``(B,)``"""
        return h0_separability(points[resample_indices])

    def neighbor_mi(self, points: Tensor, resample_indices: Tensor) -> Tensor:
        """``(N, D)`` -> ``(B,)``"""
        logits, _, near = self.predictions(points)
        return neighbor_mi(logits[resample_indices], near[resample_indices])

    def robust_mi(self, points: Tensor, resample_indices: Tensor) -> Tensor:
        """``(N, D)`` -> ``(B,)``"""
        return robust_mi(*(part[resample_indices] for part in self.predictions(points)))

    def predictions(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of a classifier with errors for points and for their corrupted copies, ``(N, k)``
        each, and the classes of the neighbors, ``(N, 1, m)``.
        """
        guess = torch.randn(self.centers.shape, generator=self.generator)
        noise = torch.randn(points.shape, generator=self.generator)
        copies = points + self.spread / 2 * noise
        logits, of_copies = (
            -torch.cdist(one, self.centers + 0.5 * guess) for one in (points, copies)
        )
        return logits, of_copies, logits.argmax(dim=-1)[nearest_neighbors(points)][:, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pools", type=int, default=200)
    parser.add_argument("--pool-size", type=int, default=600)
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--draws", type=int, default=2000, help="for the expected score")
    given = parser.parse_args()
    size = given.pool_size // 2
    chosen = draw_resamples(given.pool_size, 20, size, seed=0)
    generator = torch.Generator().manual_seed(0)
    table = Table(box=None)
    for column in ("score", "classes", "spread", "expected", "coverage", "mean width"):
        table.add_column(column, justify="right")
    for classes, spread in MIXTURES:
        centers = torch.randn(classes, given.dimensions, generator=generator)
        mixture = Mixture(centers, spread, generator)
        fresh = torch.stack([mixture.draw(size) for _ in range(given.draws)])
        scores: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
            "separability": (mixture.separability, float(h0_separability(fresh).mean()))
        }
        for score in (mixture.robust_mi, mixture.neighbor_mi):
            many = [
                float(score(mixture.draw(given.pool_size), chosen).mean())
                for _ in range(given.draws)
            ]
            scores[score.__name__] = (score, float(np.mean(many)))
        for name, (score, expected) in scores.items():
            bounds = [
                interval(
                    score(mixture.draw(given.pool_size), chosen).tolist(), size, given.pool_size
                )
                for _ in tqdm(range(given.pools), desc=f"{classes} classes", leave=False)
            ]
            low, high = np.array(bounds).T
            coverage = np.mean((low <= expected) & (expected <= high))
            numbers = (f"{expected:.3f}", f"{coverage:.1%}", f"{np.mean(high - low):.3f}")
            table.add_row(name, str(classes), f"{spread:g}", *numbers)
    Console().print(table)


if __name__ == "__main__":
    main()
