"""How often the 95 % interval of a score holds the score that it is an interval of.

    python scripts/check_interval.py

Pools are drawn from a known distribution, a mixture of Gaussians, so the expected score is known
from many draws: the separability of n fresh points, and the information that a classifier's
neighbours have in a pool of N. A 95 % interval should hold it in 95 % of the pools.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from sepstop import h0_separability
from sepstop.criteria.neighbor_mi import neighbor_information
from sepstop.measure.neighbors import nearest_neighbors
from sepstop.measure.resampling import draw_resamples, interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pools", type=int, default=200)
    parser.add_argument("--pool-size", type=int, default=600)
    parser.add_argument("--dimensions", type=int, default=64)
    arguments = parser.parse_args()
    pool_size, size = arguments.pool_size, arguments.pool_size // 2
    chosen = draw_resamples(pool_size, 20, size, seed=0)
    generator = torch.Generator().manual_seed(0)
    table = Table(box=None)
    for column in ("score", "classes", "spread", "expected", "coverage", "mean width"):
        table.add_column(column, justify="right")
    for classes, spread in ((2, 0.05), (5, 0.1), (20, 0.1), (20, 0.5), (20, 2), (20, 4)):
        centres = torch.randn(classes, arguments.dimensions, generator=generator)

        def draw(
            count: int, centres: torch.Tensor = centres, spread: float = spread
        ) -> torch.Tensor:
            label = torch.randint(len(centres), (count,), generator=generator)
            noise = torch.randn(count, centres.shape[1], generator=generator)
            return centres[label] + spread * noise

        def information(points: torch.Tensor, centres: torch.Tensor = centres) -> torch.Tensor:
            """Of each resample of a pool, by a classifier that errs."""
            guess = torch.randn(centres.shape, generator=generator)
            logits = -torch.cdist(points, centres + 0.5 * guess)
            near = logits.argmax(dim=-1)[nearest_neighbors(points)][:, None]  # (N, 1, m)
            return neighbor_information(logits[chosen], near[chosen])

        def separability(points: torch.Tensor) -> torch.Tensor:
            return h0_separability(points[chosen])

        fresh = torch.stack([draw(size) for _ in range(2000)])
        many = [float(information(draw(pool_size)).mean()) for _ in range(2000)]
        for name, score, expected in (
            ("separability", separability, float(h0_separability(fresh).mean())),
            ("information", information, float(np.mean(many))),
        ):
            bounds = [
                interval(score(draw(pool_size)).tolist(), size, pool_size)
                for _ in tqdm(range(arguments.pools), desc=f"{classes} classes", leave=False)
            ]
            low, high = np.array(bounds).T
            coverage = np.mean((low <= expected) & (expected <= high))
            numbers = (f"{expected:.3f}", f"{coverage:.1%}", f"{np.mean(high - low):.3f}")
            table.add_row(name, str(classes), f"{spread:g}", *numbers)
    Console().print(table)


if __name__ == "__main__":
    main()
