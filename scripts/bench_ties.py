"""What to keep among checkpoints that cannot be told apart: the best, the earliest or the latest.

    python scripts/bench_ties.py FOLDER_OF_SUITES

A tie is a checkpoint that the best one does not beat significantly (5 %) on the paired resamples.
Printed is what each rule loses against the best checkpoint of its run, in points of test accuracy,
on the recorded runs in the folder's subfolders.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from sepstop.bench.judge import ScoreCache, bootstrap_interval
from sepstop.bench.recorded_run import load_run
from sepstop.criteria import CRITERIA
from sepstop.decide.policies import best_record
from sepstop.decide.selection import ties_of
from sepstop.utils.registry import build

SHOWN = ("information", "component_information", "infomax", "stable_rank", "separability")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("suites", type=Path, help="folder of folders of recorded runs")
    suites = parser.parse_args().suites
    losses = defaultdict(list)
    for path in sorted(suites.glob("*/*.npz")):
        run, score = load_run(path), ScoreCache(path.parent / "scores")
        accuracy = dict(zip(run.steps, 100 * run.test_accuracy, strict=True))
        suite = "development" if path.parent.name == "development" else "others"
        for name in SHOWN:
            criterion = build("criterion", name, CRITERIA)
            history = [record for record in score(run, criterion) if record.step > 0]
            mode = "max" if criterion.higher_is_better else "min"
            best = best_record(history, mode)
            tied = sorted([best.step, *ties_of(best, history, mode)])
            loss = [max(accuracy.values()) - accuracy[s] for s in (best.step, tied[0], tied[-1])]
            losses[name, suite].append([*loss, len(tied)])
    table = Table(title="Points of test accuracy lost, and checkpoints tied, on average")
    columns = ("criterion", "runs", "", "the best", "the earliest", "less the best", "the latest")
    for column in (*columns, "tied"):
        table.add_column(column, justify="right")
    for (name, suite), rows in losses.items():
        best, earliest, latest, tied = np.array(rows).T
        worse = earliest - best
        low, high = bootstrap_interval(worse)
        worse = earliest - best
        low, high = bootstrap_interval(worse)
        table.add_row(
            name,
            suite,
            str(len(rows)),
            f"{best.mean():.1f}",
            f"{earliest.mean():.1f}",
            f"{worse.mean():+.1f} [{low:+.1f}, {high:+.1f}]",
            f"{latest.mean():.1f}",
            f"{tied.mean():.1f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
