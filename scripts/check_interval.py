"""How often the 95 % interval of a score holds the score that it is an interval of.

    python scripts/check_interval.py

Pools are drawn from a known distribution, a mixture of Gaussians on the sphere, so the expected
score of n fresh points is known from many draws. A 95 % interval should hold it in 95 % of the
pools.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from sepstop import h0_separability
from sepstop.resampling import draw_resamples, interval


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
    for column in ("classes", "spread", "expected score", "coverage", "mean width"):
        table.add_column(column, justify="right")
    for classes, spread in ((2, 0.05), (5, 0.1), (20, 0.1), (20, 0.5)):
        centres = torch.randn(classes, arguments.dimensions, generator=generator)

        def draw(
            count: int, centres: torch.Tensor = centres, spread: float = spread
        ) -> torch.Tensor:
            label = torch.randint(len(centres), (count,), generator=generator)
            noise = torch.randn(count, centres.shape[1], generator=generator)
            return centres[label] + spread * noise

        fresh = torch.stack([draw(size) for _ in range(2000)])
        expected = float(h0_separability(fresh).mean())
        bounds = [
            interval(h0_separability(draw(pool_size)[chosen]).tolist(), size, pool_size)
            for _ in tqdm(range(arguments.pools), desc=f"{classes} classes", leave=False)
        ]
        low, high = np.array(bounds).T
        coverage = np.mean((low <= expected) & (expected <= high))
        table.add_row(
            str(classes),
            f"{spread:g}",
            f"{expected:.3f}",
            f"{coverage:.1%}",
            f"{np.mean(high - low):.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
