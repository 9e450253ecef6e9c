"""What stopping by the default policy costs, on recorded runs.

    python scripts/bench_stops.py RUNS_DIR [RUNS_DIR ...]

The cost of a stop is the test accuracy of what the whole run would have kept, less that of what the
stopped run keeps. Beside the default are earlier rules: a best score of 0.1 was enough, a drop of
the score stopped at once, and `neighbor_mi` had no term of confidence.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sepstop.bench.outcomes import Outcome
from sepstop.bench.recorded_run import RecordedRun, find_recorded_runs, load_run
from sepstop.bench.scores import can_score, score_run
from sepstop.criteria import NeighborMI, RobustMI
from sepstop.criteria.neighbor_mi import neighbor_mi
from sepstop.decide.policies import PastPeak, default_policy, replay
from sepstop.types import CHECKPOINT, Criterion, Decision, Policy, Series


@dataclass(frozen=True)
class WithoutConfidence:
    """`NeighborMI` without its term of confidence."""

    name: ClassVar[str] = "neighbor_mi without confidence"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = NeighborMI.needs

    def __call__(self, logits: Tensor, neighbor_classes: Tensor) -> Tensor:
        return neighbor_mi(logits, neighbor_classes)


@dataclass(frozen=True)
class AtOnce:
    """`PastPeak` that does not wait after a drop.

    Attributes:
        min_best: as that of `PastPeak`.
    """

    min_best: float

    def __call__(self, series: Series) -> Decision:
        dropped = PastPeak(min_best=self.min_best, max_age=0.999, min_evaluations=1)(series)
        return dropped if dropped.stop else PastPeak(min_best=self.min_best)(series)


RULES: dict[str, tuple[Criterion, Policy]] = {
    "robust_mi": (RobustMI(), default_policy("robust_mi")),
    "robust_mi, 0.1 is enough": (RobustMI(), PastPeak(min_best=0.1)),
    "robust_mi, a drop stops at once": (RobustMI(), AtOnce(0.1)),
    "neighbor_mi": (NeighborMI(), default_policy("neighbor_mi")),
    "neighbor_mi, a drop stops at once": (NeighborMI(), AtOnce(0.1)),
    "the same without confidence": (WithoutConfidence(), AtOnce(0.0)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs_dirs", type=Path, nargs="+", metavar="RUNS_DIR")
    options = parser.parse_args()
    paths = [path for folder in options.runs_dirs for path in find_recorded_runs(folder)]
    runs = [load_run(path) for path in paths]
    table = Table(title="points of test accuracy")
    for column in (
        "score and rule",
        "of",
        "runs",
        "regret",
        "cost of the stop",
        "largest",
        "saved",
    ):
        table.add_column(column, justify="left" if column in ("score and rule", "of") else "right")
    for name, (criterion, policy) in RULES.items():
        for kind in ("averages", "checkpoints"):
            found = [one for run in runs if (one := costs(run, kind, criterion, policy))]
            if found:
                regret, cost, saved = np.array(found).T
                cells = (f"{100 * regret.mean():.1f}", f"{100 * cost.mean():.1f}")
                more = (f"{100 * cost.max():.1f}", f"{saved.mean():.0%}")
                table.add_row(name, kind, str(len(found)), *cells, *more)
    Console(width=120).print(table)


def costs(
    run: RecordedRun, kind: str, criterion: Criterion, policy: Policy
) -> tuple[float, float, float] | None:
    """Regret of what the whole run keeps, cost of the stop, and share of the steps saved.

    Args:
        kind: "averages" or "checkpoints": what the score chooses among.

    Returns:
        None for a run without these candidates, or without what the score needs.
    """
    candidates = run.averages if kind == "averages" else (CHECKPOINT,)
    if not candidates or not can_score(run, criterion, candidates):
        return None
    scored = score_run(run, [criterion], candidates)[criterion.name]
    decision = replay(policy, scored.series)
    whole = Outcome.of(run, scored, scored.series.best_step)
    stop_step = decision.step if decision.stop else None
    stopped = Outcome.of(run, scored, decision.best_step, stop_step)
    return whole.regret, stopped.regret - whole.regret, stopped.saved


if __name__ == "__main__":
    main()
