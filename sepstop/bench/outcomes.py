"""Outcomes: what a choice kept on one run, and how well its scores agree with accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sepstop.bench.recorded_run import RecordedRun
from sepstop.bench.scored import Scored
from sepstop.types import CHECKPOINT

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Rank agreement of score and test accuracy over the candidates of a run after step 0.

    Attributes:
        spearman, weighted_spearman: NaN if score or accuracy is constant.
    """

    spearman: float = math.nan
    weighted_spearman: float = math.nan

    @classmethod
    def of(cls, run: RecordedRun, scored: Scored) -> Agreement:
        """The agreement of one criterion's scores."""
        accuracy = {name: run.test_accuracy_of(name) for name in run.candidates}
        sign = 1 if scored.higher_is_better else -1
        pairs = [
            (sign * score.value, accuracy[candidate][t])
            for t, (step, scores) in enumerate(zip(scored.steps, scored.scores, strict=True))
            for candidate, score in scores.items()
            if step > 0 and score.is_finite
        ]
        values, reached = np.array(pairs).reshape(-1, 2).T
        if len(pairs) < 3 or np.ptp(values) == 0 or np.ptp(reached) == 0:
            return cls()
        return cls(float(stats.spearmanr(values, reached)[0]), weighted_spearman(values, reached))


@dataclass(frozen=True)
class Outcome:
    """One criterion with one policy on one run.

    Attributes:
        step: of what is kept.
        candidate: what is kept: `sepstop.types.CHECKPOINT`, or the name of an average.
        regret: test accuracy of the run's best single checkpoint less that of what is kept. Below
            0 for an average that beats them all.
        saved: share of the steps left out.
        agreement: of score and test accuracy.
    """

    step: int
    candidate: str
    regret: float
    saved: float = 0.0
    agreement: Agreement = field(default_factory=Agreement)

    @classmethod
    def of(
        cls,
        run: RecordedRun,
        scored: Scored,
        step: int | None,
        stop_step: int | None = None,
        agreement: Agreement | None = None,
    ) -> Outcome:
        """The outcome of a run that keeps the best candidate of ``step``.

        Args:
            step: None keeps the last checkpoint: nothing could be scored.
            stop_step: None is a run that was not stopped.
            agreement: of ``scored``.
        """
        end = run.steps[-1]
        kept = end if step is None else step
        candidate = CHECKPOINT if step is None else scored.best_at(step)
        accuracy = run.test_accuracy_of(candidate)[run.steps.index(kept)]
        return cls(
            step=kept,
            candidate=candidate,
            regret=float(run.best_accuracy - accuracy),
            saved=0.0 if stop_step is None else 1 - stop_step / end,
            agreement=agreement or Agreement(),
        )


def weighted_spearman(scores: Floats, accuracy: Floats) -> float:
    """Spearman's correlation in which high ranks of either variable weigh more.

    Args:
        scores, accuracy: ``(T,)``.

    References:
        arXiv:2208.07360: the weight of a point is the square of its larger rank.
    """
    ranks = np.stack([stats.rankdata(scores), stats.rankdata(accuracy)]) / len(scores)
    covariance = np.cov(ranks, aweights=ranks.max(axis=0) ** 2)
    spread = math.sqrt(covariance[0, 0] * covariance[1, 1])
    return float(covariance[0, 1] / spread) if spread > 0 else math.nan
