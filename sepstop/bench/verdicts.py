"""Verdicts on criteria and policies: regret, steps saved and rank agreement over a set of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sepstop.bench.label_curve import label_equivalent
from sepstop.bench.recorded_run import RecordedRun
from sepstop.types import Series

Floats = NDArray[np.float64]

DEFAULT = "default"
"""In tables: what a user gets without choosing, the default criterion and its default policy."""

HINDSIGHT = "hindsight"
"""In tables: the best step of the whole run, no policy."""

OURS = (
    DEFAULT,
    "neighbor_mi",
    "component_mi",
    "consistency",
    "cluster_entropy",
    "cluster_information",
)
"""Criteria of this project; all others are peers."""

_BOOTSTRAP = 2000
_SEED = 0


@dataclass(frozen=True)
class Outcome:
    """One criterion with one policy on one run.

    Attributes:
        pick: step of the checkpoint that is kept.
        regret: best test accuracy of the run less that of the pick, from 0 to 1.
        saved: share of the steps left out.
        spearman, weighted_spearman: rank agreement of score and test accuracy after step 0; NaN if
            either is constant.
    """

    pick: int
    regret: float
    saved: float
    spearman: float
    weighted_spearman: float

    @classmethod
    def of(
        cls, run: RecordedRun, series: Series, pick: int | None, stop_step: int | None = None
    ) -> Outcome:
        """The outcome of a run that keeps ``pick`` and stops at ``stop_step``.

        Args:
            series: the scores, for the rank agreement.
            pick: None is the last step: nothing could be scored.
            stop_step: None is a run that was not stopped.
        """
        accuracy = dict(zip(run.steps, run.test_accuracy, strict=True))
        end = run.steps[-1]
        kept = end if pick is None else pick
        finite = [(step, score) for step, score in series.trained if score.is_finite]
        scores = np.array([series.sign * score.value for _, score in finite])
        reached = np.array([accuracy[step] for step, _ in finite])
        varies = len(finite) > 2 and np.ptp(scores) > 0 and np.ptp(reached) > 0
        return cls(
            pick=kept,
            regret=float(run.test_accuracy.max() - accuracy[kept]),
            saved=0.0 if stop_step is None else 1 - stop_step / end,
            spearman=float(stats.spearmanr(scores, reached)[0]) if varies else math.nan,
            weighted_spearman=weighted_spearman(scores, reached) if varies else math.nan,
        )


@dataclass(frozen=True)
class Verdict:
    """One criterion with one policy on all runs.

    Attributes:
        criterion, policy: names in tables.
        outcomes: one per run, ``(R,)``.
        label_free: False for a reference that sees labels of its own.
    """

    criterion: str
    policy: str
    outcomes: tuple[Outcome, ...]
    label_free: bool = True

    @property
    def picks(self) -> list[int]:
        return [outcome.pick for outcome in self.outcomes]

    @property
    def regrets(self) -> Floats:
        """``(R,)``"""
        return self._values("regret")

    @property
    def saved(self) -> Floats:
        """``(R,)``"""
        return self._values("saved")

    def summary(self) -> dict[str, Any]:
        """Means over runs, the regret's with its 95 % interval."""
        regrets = self.regrets
        low, high = bootstrap_interval(regrets)
        return {
            "criterion": self.criterion,
            "policy": self.policy,
            "label_free": self.label_free,
            "regret_mean": float(regrets.mean()),
            "regret_low": low,
            "regret_high": high,
            "regret_p90": float(np.quantile(regrets, 0.9)),
            "regret_max": float(regrets.max()),
            "steps_saved_mean": float(self.saved.mean()),
            "spearman_mean": _nanmean(self._values("spearman")),
            "weighted_spearman_mean": _nanmean(self._values("weighted_spearman")),
        }

    def _values(self, name: str) -> Floats:
        return np.array([getattr(outcome, name) for outcome in self.outcomes])


@dataclass(frozen=True)
class Judgement:
    """All verdicts on a set of runs.

    Attributes:
        runs: names.
        verdicts: references first, the default last.
        label_regrets: m -> mean regret of picking by validation accuracy on m labels.
    """

    runs: Sequence[str]
    verdicts: Sequence[Verdict]
    label_regrets: Mapping[int, float]

    def find(self, criterion: str, policy: str = HINDSIGHT) -> Verdict:
        """The verdict on a criterion with a policy.

        Raises:
            KeyError: it was not judged.
        """
        for verdict in self.verdicts:
            if (verdict.criterion, verdict.policy) == (criterion, policy):
                return verdict
        raise KeyError(f"{criterion} with {policy} was not judged")

    def summaries(self) -> list[dict[str, Any]]:
        """One row per verdict, with its label equivalent and the difference to the best peer."""
        peers = [
            verdict
            for verdict in self.verdicts
            if verdict.label_free and verdict.policy == HINDSIGHT and verdict.criterion not in OURS
        ]
        best = min(peers, key=lambda verdict: verdict.regrets.mean(), default=None)
        rows = []
        for verdict in self.verdicts:
            row = verdict.summary()
            row["label_equivalent"] = label_equivalent(row["regret_mean"], self.label_regrets)
            if best is not None and verdict is not best:
                difference = verdict.regrets - best.regrets
                low, high = bootstrap_interval(difference)
                row |= {
                    "against": best.criterion,
                    "difference_mean": float(difference.mean()),
                    "difference_low": low,
                    "difference_high": high,
                }
            rows.append(row)
        return rows

    def as_json(self) -> dict[str, Any]:
        """What `sepstop bench judge --json` prints; NaN and infinity are None."""
        return _finite(
            {
                "default": self._default(),
                "label_regrets": {str(m): regret for m, regret in self.label_regrets.items()},
                "rows": self.summaries(),
                "runs": {
                    run: {
                        f"{verdict.criterion} / {verdict.policy}": {
                            "regret": verdict.outcomes[i].regret,
                            "pick": verdict.outcomes[i].pick,
                            "steps_saved": verdict.outcomes[i].saved,
                        }
                        for verdict in self.verdicts
                    }
                    for i, run in enumerate(self.runs)
                },
            }
        )

    def _default(self) -> dict[str, Any]:
        pick, stop = self.find(DEFAULT).summary(), self.find(DEFAULT, "auto").summary()
        curve = self.label_regrets
        return {
            "criterion": DEFAULT,
            "policy": "auto",
            **{key: pick[key] for key in ("regret_mean", "regret_p90", "regret_max")},
            "regret_stop_mean": stop["regret_mean"],
            "steps_saved_mean": stop["steps_saved_mean"],
            "label_equivalent": label_equivalent(pick["regret_mean"], curve),
            "label_equivalent_stop": label_equivalent(stop["regret_mean"], curve),
        }


def bootstrap_interval(values: Floats) -> tuple[float, float]:
    """95 % percentile interval of the mean over runs, ``(R,)``; NaN for a single run."""
    if len(values) < 2:
        return math.nan, math.nan
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=_BOOTSTRAP, method="percentile", rng=_SEED
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


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


def _nanmean(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _finite(value: Any) -> Any:
    """``value`` with None for each NaN or infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
