"""Regret of averages chosen by other variants of `robust_mi`, on recorded runs.

    python scripts/bench_robust_mi.py RUNS_DIR

The variants have another weight of consistency, or another confidence from which on they trust the
predictions.

The regret is the test accuracy of the best checkpoint less that of the average that is kept, at the
end of the run and where its default policy stops it.
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
from sepstop.bench.scored import Scored
from sepstop.bench.scores import score_run
from sepstop.criteria.neighbor_mi import neighbor_mi
from sepstop.criteria.robust_mi import (
    CONSISTENCY_WEIGHT,
    ENOUGH_CONFIDENCE,
    RobustMI,
    confidence,
    consistency,
)
from sepstop.decide.policies import default_policy, replay
from sepstop.measure.average import AVERAGES

WEIGHTS = (0.0, 0.5, 1.0)
CONFIDENCES = (0.0, 0.2, ENOUGH_CONFIDENCE, 0.6)


@dataclass(frozen=True)
class Variant:
    """`RobustMI` with other constants."""

    weight: float = CONSISTENCY_WEIGHT
    enough: float = ENOUGH_CONFIDENCE
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = RobustMI.needs
    outputs: ClassVar[str] = "classes"

    @property
    def name(self) -> str:
        return f"{self.weight:.2f}, {self.enough:.1f}"

    def __call__(self, logits: Tensor, corrupted: Tensor, neighbor_classes: Tensor) -> Tensor:
        stable = consistency(logits, corrupted).clamp(min=0)
        score = stable**self.weight * neighbor_mi(logits, neighbor_classes) ** (1 - self.weight)
        if self.enough:
            score = score * (confidence(logits) / self.enough).clamp(max=1) ** 2
        return score


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs_dir", type=Path)
    criteria = [Variant(weight) for weight in WEIGHTS]
    criteria += [Variant(enough=enough) for enough in CONFIDENCES]
    found: dict[str, list[tuple[float, ...]]] = {one.name: [] for one in criteria}
    for path in find_recorded_runs(parser.parse_args().runs_dir):
        run = load_run(path)
        scores = score_run(run, criteria, candidates=tuple(AVERAGES))
        for name, scored in scores.items():
            found[name].append(outcome(run, scored))
    table = Table(title=f"{len(found[criteria[0].name])} runs, points of test accuracy")
    columns = ("regret", "median", "p90", "max", "stopped", "median", "p90", "max", "saved")
    for column in ("weight, confidence", *columns):
        table.add_column(column, justify="right")
    for name, outcomes in found.items():
        end, stopped, saved = np.array(outcomes).T
        statistics = (np.mean, np.median, lambda regrets: np.quantile(regrets, 0.9), np.max)
        cells = [statistic(regrets) for regrets in (end, stopped) for statistic in statistics]
        table.add_row(name, *(f"{100 * cell:.1f}" for cell in cells), f"{saved.mean():.0%}")
    Console().print(table)


def outcome(run: RecordedRun, scored: Scored) -> tuple[float, float, float]:
    """Regret at the end, regret where `PastPeak` stops, and the share of steps that saves."""
    decision = replay(default_policy(RobustMI.name), scored.series)
    stop_step = decision.step if decision.stop else None
    end = Outcome.of(run, scored, scored.series.best_step)
    stopped = Outcome.of(run, scored, decision.best_step, stop_step)
    return end.regret, stopped.regret, stopped.saved


if __name__ == "__main__":
    main()
