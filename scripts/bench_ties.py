"""Accuracy lost by keeping the best, the earliest or the latest of tied checkpoints.

    python scripts/bench_ties.py FOLDER_OF_SUITES

A checkpoint is tied with the best one if that does not beat it significantly (5 %) on the paired
resamples. The table shows what each choice loses against the most accurate checkpoint of its run,
in points of test accuracy, on the recorded runs in the folder's subfolders.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from sepstop.bench.judge import KNOWN
from sepstop.bench.recorded_run import RecordedRun, load_run
from sepstop.bench.scores import ScoreCache
from sepstop.bench.verdicts import bootstrap_interval
from sepstop.decide.selection import tied_steps
from sepstop.types import Series

SHOWN = ("neighbor_mi", "component_mi", "infomax", "stable_rank", "separability")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("suites", type=Path, help="folder of folders of recorded runs")
    paths = sorted(parser.parse_args().suites.glob("*/*.npz"))
    if not paths:
        parser.error("no recorded runs (.npz files) in its subfolders")
    criteria = [KNOWN[name]() for name in SHOWN]
    losses = defaultdict(list)
    for path in paths:
        run = load_run(path)
        suite = "development" if path.parent.name == "development" else "others"
        for name, scored in ScoreCache(path.parent / "scores")(run, criteria).items():
            losses[name, suite].append(lost(run, scored.series.trained))
    Console(width=120).print(table(losses))


def lost(run: RecordedRun, series: Series) -> list[float]:
    """Points lost by the best, the earliest and the latest; number of tied checkpoints."""
    accuracy = dict(zip(run.steps, 100 * run.test_accuracy, strict=True))
    best = series.best_step
    assert best is not None
    tied = sorted([best, *tied_steps(series, best)])
    top = 100 * run.best_accuracy
    return [*(top - accuracy[step] for step in (best, tied[0], tied[-1])), len(tied)]


def table(losses: Mapping[tuple[str, str], list[list[float]]]) -> Table:
    found = Table(title="Points of test accuracy lost, and checkpoints tied, on average")
    columns = ("criterion", "suites", "runs", "the best", "the earliest", "less the best")
    for column in (*columns, "the latest", "tied"):
        found.add_column(column, justify="right")
    for (name, suite), rows in losses.items():
        best, earliest, latest, tied = np.array(rows).T
        more = earliest - best
        low, high = bootstrap_interval(more)
        found.add_row(
            name,
            suite,
            str(len(rows)),
            f"{best.mean():.1f}",
            f"{earliest.mean():.1f}",
            f"{more.mean():+.1f} [{low:+.1f}, {high:+.1f}]",
            f"{latest.mean():.1f}",
            f"{tied.mean():.1f}",
        )
    return found


if __name__ == "__main__":
    main()
