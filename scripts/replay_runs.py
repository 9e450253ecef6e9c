"""Replay the default criterion and policy on recorded runs and judge them by test accuracy.

    python scripts/replay_runs.py RUNS_DIR

A run is an .npz with `steps (T,)`, `pool_e (T, N, D)` and `te_acc (T,)`. Regret is the best test
accuracy of the whole run less that of the pick, in points.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from sepstop import Plateau, Record, h0_separability, replay
from sepstop.decide.policies import best_record
from sepstop.measure.resampling import draw_resamples, interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs_dir", type=Path)
    runs = sorted(parser.parse_args().runs_dir.glob("*.npz"))
    if not runs:
        raise SystemExit("no .npz files in that folder")
    table = Table(title="regret in points of test accuracy", box=None)
    table.add_column("run")
    for column in ("last", "pick in hindsight", "pick when stopping", "steps saved"):
        table.add_column(column, justify="right")
    rows = []
    for path in tqdm(runs, desc="runs"):
        with np.load(path) as run:
            steps, accuracy = run["steps"].tolist(), run["te_acc"]
            history = records(steps, torch.from_numpy(run["pool_e"]))
        at = dict(zip(steps, accuracy.tolist(), strict=True))
        whole, decision = best_record(history), replay(Plateau(), history)
        picks = (steps[-1], whole.step, decision.best_step)
        regrets = [100 * (accuracy.max() - at[step]) for step in picks]
        saved = 100 * (1 - decision.step / steps[-1])
        rows.append([*regrets, saved])
        table.add_row(path.stem, *(f"{value:.1f}" for value in regrets), f"{saved:.0f} %")
    means = np.mean(rows, axis=0)
    table.add_row("mean", *(f"{value:.1f}" for value in means[:3]), f"{means[3]:.0f} %")
    Console(width=120).print(table)


def records(steps: list[int], embeddings: torch.Tensor) -> list[Record]:
    """What a Monitor with its defaults would have recorded: ``(T, N, D)`` -> T records."""
    pool_size = embeddings.shape[1]
    size = min(pool_size // 2, 1000)
    chosen = draw_resamples(pool_size, 20, size, seed=0)
    history = []
    for step, points in zip(steps, embeddings, strict=True):
        scores = h0_separability(points.float()[chosen]).tolist()
        low, high = interval(scores, size, pool_size)
        history.append(Record(step, None, float(np.mean(scores)), low=low, high=high))
    return history


if __name__ == "__main__":
    main()
