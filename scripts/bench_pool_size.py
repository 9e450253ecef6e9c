"""What smaller pools and fewer scores cost, on recorded runs.

    python scripts/record_suite.py configs/bench/pool_size.yaml DATA_DIR --out RUNS_DIR
    python scripts/bench_pool_size.py RUNS_DIR [RUNS_DIR ...]

A smaller pool is a random part of the recorded one. Below the whole pool, figures are means over
`DRAWS` such parts; a run whose pool is not larger counts with all of it. Every k-th score is that
of every k-th evaluation, and of the last.

What is kept is the best average by `robust_mi`, or of runs recorded without averages the best
checkpoint by `neighbor_mi`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from sepstop.bench.outcomes import Agreement, Outcome
from sepstop.bench.recorded_run import RecordedRun, find_recorded_runs, load_run
from sepstop.bench.scores import ONLY_CHECKPOINTS, can_score, score_run
from sepstop.bench.verdicts import bootstrap_interval
from sepstop.criteria import NeighborMI, RobustMI
from sepstop.measure.average import AVERAGES
from sepstop.types import Criterion

SIZES = (125, 250, 500, 1000, 2000)
EVERY = (1, 2, 3, 4)
DRAWS = 5


class Way(NamedTuple):
    """How a run chooses what it keeps."""

    name: str
    criterion: Criterion
    candidates: Sequence[str]


BY_ROBUST_MI = Way("averages by robust_mi", RobustMI(), tuple(AVERAGES))
BY_NEIGHBOR_MI = Way("checkpoints by neighbor_mi", NeighborMI(), ONLY_CHECKPOINTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs_dirs", type=Path, nargs="+", metavar="RUNS_DIR")
    options = parser.parse_args()
    paths = [path for folder in options.runs_dirs for path in find_recorded_runs(folder)]
    runs = [load_run(path) for path in tqdm(paths, desc="reading", leave=False)]
    runs.sort(key=lambda run: run.arrays["pool_l"].shape[-1])
    ways: dict[Way, list[RecordedRun]] = {}
    for run in runs:
        has_averages = can_score(run, BY_ROBUST_MI.criterion, BY_ROBUST_MI.candidates)
        ways.setdefault(BY_ROBUST_MI if has_averages else BY_NEIGHBOR_MI, []).append(run)
    out = Console(width=140)
    for way, some in ways.items():
        most = max(run.pool_size for run in some)
        sizes = [size for size in SIZES if size < most] + [most]
        by_size = {f"{size} texts": lambda run, size=size: parts(run, size) for size in sizes}
        out.print(table_of("the pool's size", way, some, by_size))
        by_count = {
            f"every {every}": lambda run, every=every: [thinned(run, every)] for every in EVERY
        }
        out.print(table_of("one score in so many evaluations", way, some, by_count))


def table_of(
    title: str,
    way: Way,
    runs: Sequence[RecordedRun],
    settings: dict[str, Callable[[RecordedRun], Sequence[RecordedRun]]],
) -> Table:
    """Regret with its interval, largest regret and rank agreement; the regret by classes."""
    groups: dict[str, list[RecordedRun]] = {}
    for run in runs:
        groups.setdefault(f"{run.arrays['pool_l'].shape[-1]} classes", []).append(run)
    table = Table(title=f"{title}: {way.name}, regret in points of test accuracy")
    names = [f"{name} ({len(runs)})" for name, runs in groups.items()]
    for column in ("", "all runs", "largest", "rank agreement", *names):
        table.add_column(column, justify="right")
    for setting, variants in tqdm(settings.items(), desc=title, leave=False):
        found = {
            name: np.array(
                [
                    np.mean([judged(part, run, way) for part in variants(run)], axis=0)
                    for run in runs
                ]
            )
            for name, runs in groups.items()
        }
        regrets, agreements = np.concatenate(list(found.values())).T
        agreements = agreements[np.isfinite(agreements)]
        low, high = bootstrap_interval(100 * regrets)
        table.add_row(
            setting,
            f"{100 * regrets.mean():.1f} [{low:.1f}, {high:.1f}]",
            f"{100 * regrets.max():.1f}",
            f"{agreements.mean():.2f}" if agreements.size else "",
            *(f"{100 * values[:, 0].mean():.1f}" for values in found.values()),
        )
    return table


def judged(part: RecordedRun, run: RecordedRun, way: Way) -> tuple[float, float]:
    """Regret of what a part of a run keeps at its end, and rank agreement of score and accuracy.

    The regret is to the best checkpoint of the whole run.
    """
    scored = score_run(part, [way.criterion], way.candidates)[way.criterion.name]
    outcome = Outcome.of(part, scored, scored.series.best_step)
    regret = outcome.regret + run.best_accuracy - part.best_accuracy
    return regret, Agreement.of(part, scored).spearman


def parts(run: RecordedRun, size: int) -> list[RecordedRun]:
    """The run with random parts of its pool; the whole pool once."""
    if size >= run.pool_size:
        return [run]
    return [with_texts(run, indices) for indices in draws(run.pool_size, size)]


def draws(pool_size: int, size: int) -> Iterator[np.ndarray]:
    for seed in range(DRAWS):
        yield np.random.default_rng(seed).permutation(pool_size)[:size]


def with_texts(run: RecordedRun, indices: np.ndarray) -> RecordedRun:
    """The run with some texts of its pool."""

    def part(key: str, array: Any) -> Any:
        if key == "y":
            return array[indices]
        return array[:, indices] if is_of_pool(key) else array

    arrays = {key: part(key, array) for key, array in run.arrays.items()}
    return replace(run, arrays=arrays)


def is_of_pool(key: str) -> bool:
    """True for an array ``(T, N, ...)`` of a candidate."""
    return "pool_" in key and not key.endswith("pool_acc")


def thinned(run: RecordedRun, every: int) -> RecordedRun:
    """The run with the start, every k-th evaluation, and the last."""
    last = len(run) - 1
    kept = sorted({*range(0, last + 1, every), last})
    arrays = {
        key: array if key in ("y", "train_y", "plain_te_acc") else array[kept]
        for key, array in run.arrays.items()
    }
    return replace(run, arrays=arrays)


if __name__ == "__main__":
    main()
