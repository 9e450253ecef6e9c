"""Regret of averages chosen by other variants of `robust_mi`, on recorded runs.

    python scripts/bench_robust_mi.py RUNS_DIR [RUNS_DIR ...]

The variants have another weight of consistency, another confidence from which on they trust the
predictions, the earlier confidence by the probability of the predicted class, or another lower
bound of the information in the first neighbors: a multiple of what chance gives, or a share of the
mean over all evaluations, which the data tell.

The regret is the test accuracy of the best checkpoint less that of the average that is kept, at the
end of the run and where its default policy stops it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sepstop.bench.outcomes import Outcome
from sepstop.bench.recorded_run import RecordedRun, find_recorded_runs, load_run
from sepstop.bench.scored import Scored
from sepstop.bench.scores import score_run
from sepstop.criteria.neighbor_mi import CHANCE_FACTOR, mi_of_evaluations
from sepstop.criteria.predictions import ENOUGH_CONFIDENCE, confidence
from sepstop.criteria.robust_mi import CONSISTENCY_WEIGHT, RobustMI, consistency
from sepstop.decide.policies import default_policy, replay
from sepstop.measure.average import AVERAGES

WEIGHTS = (0.0, 0.5, 1.0)
CONFIDENCES = (0.0, 0.2, ENOUGH_CONFIDENCE, 0.6)
BOUNDS = (0.0, 3.0, CHANCE_FACTOR, 30.0)
SHARES = (0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Variant:
    """`RobustMI` with other constants.

    Attributes:
        bound: of the information in the first neighbors, in units of (k - 1) / n nats.
        share: of the mean information, as the bound instead; None for `bound`.
        by_probability: take the earlier confidence, `confidence_by_probability`.
    """

    weight: float = CONSISTENCY_WEIGHT
    enough: float = ENOUGH_CONFIDENCE
    bound: float = CHANCE_FACTOR
    share: float | None = None
    by_probability: bool = False
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = RobustMI.needs
    outputs: ClassVar[str] = "classes"

    @property
    def name(self) -> str:
        bound = f"{self.bound:g}" if self.share is None else f"{self.share:g} of the mean"
        earlier = " by probability" * self.by_probability
        return f"{self.weight:.2f}, {self.enough:.1f}{earlier}, {bound}"

    def __call__(self, logits: Tensor, corrupted: Tensor, neighbor_classes: Tensor) -> Tensor:
        stable = consistency(logits, corrupted).clamp(min=0)
        n, k = logits.shape[-2:]
        information = mi_of_evaluations(logits.argmax(dim=-1), neighbor_classes, k)  # (B, S)
        mean = information.mean(dim=1)
        bound = self.bound * (k - 1) / n if self.share is None else self.share * mean
        first = information[:, 0].clamp(min=torch.as_tensor(bound))
        score = stable**self.weight * (first * mean).sqrt() ** (1 - self.weight)
        if self.enough:
            sure = confidence_by_probability if self.by_probability else confidence
            score = score * (sure(logits) / self.enough).clamp(max=1) ** 2
        return score


def confidence_by_probability(logits: Tensor) -> Tensor:
    """Mean probability of the predicted class, from 0 for chance to 1; as `confidence`."""
    chance = 1 / logits.shape[-1]
    return (logits.double().softmax(dim=-1).amax(dim=-1).mean(dim=-1) - chance) / (1 - chance)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs_dirs", type=Path, nargs="+", metavar="RUNS_DIR")
    criteria = [Variant(weight) for weight in WEIGHTS]
    criteria.append(Variant(by_probability=True))
    criteria += [Variant(enough=enough) for enough in CONFIDENCES]
    criteria += [Variant(bound=bound) for bound in BOUNDS]
    criteria += [Variant(share=share) for share in SHARES]
    criteria = list(dict.fromkeys(criteria))  # the default is in each list
    found: dict[str, list[tuple[float, ...]]] = {one.name: [] for one in criteria}
    folders = parser.parse_args().runs_dirs
    for path in (path for folder in folders for path in find_recorded_runs(folder)):
        run = load_run(path)
        scores = score_run(run, criteria, candidates=tuple(AVERAGES))
        for name, scored in scores.items():
            found[name].append(outcome(run, scored))
    table = Table(title=f"{len(found[criteria[0].name])} runs, points of test accuracy")
    columns = ("regret", "median", "p90", "max", "stopped", "median", "p90", "max", "saved")
    for column in ("weight, confidence, bound", *columns):
        table.add_column(column, justify="right")
    for name, outcomes in found.items():
        end, stopped, saved = np.array(outcomes).T
        statistics = (np.mean, np.median, lambda regrets: np.quantile(regrets, 0.9), np.max)
        cells = [statistic(regrets) for regrets in (end, stopped) for statistic in statistics]
        table.add_row(name, *(f"{100 * cell:.1f}" for cell in cells), f"{saved.mean():.0%}")
    Console(width=120).print(table)


def outcome(run: RecordedRun, scored: Scored) -> tuple[float, float, float]:
    """Regret at the end, regret where `PastPeak` stops, and the share of steps that saves."""
    decision = replay(default_policy(RobustMI.name), scored.series)
    stop_step = decision.step if decision.stop else None
    end = Outcome.of(run, scored, scored.series.best_step)
    stopped = Outcome.of(run, scored, decision.best_step, stop_step)
    return end.regret, stopped.regret, stopped.saved


if __name__ == "__main__":
    main()
