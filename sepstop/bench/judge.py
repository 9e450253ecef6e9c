"""Judge criteria and policies on recorded runs by the test accuracy of what they pick.

Regret is the best test accuracy of the whole run less that of the pick. Every mean over runs has a
95 % bootstrap interval over runs. A criterion's label equivalent is the number m of labelled
examples at which picking by validation accuracy has the same mean regret; the m examples are drawn
from the run's own pool, many times.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from sepstop._version import __version__
from sepstop.bench.recorded_run import Run, fingerprint
from sepstop.criteria import CRITERIA
from sepstop.decide.policies import (
    POLICIES,
    Auto,
    Mode,
    best_record,
    has_information,
    replay,
    scored_by_information,
)
from sepstop.measure.neighbors import Neighborhoods
from sepstop.measure.resampling import draw_resamples, interval, score_resamples
from sepstop.runs.history import read_history, try_to_write
from sepstop.types import Criterion, Policy, Record
from sepstop.utils.registry import build, describe

Floats = NDArray[np.float64]

LABELS = (5, 10, 25, 50, 100, 200, 400, 800, 1600)
"""Sizes m of the validation sets that label equivalents are read off from."""

DEFAULT = "default"
"""In tables: what a user gets without choosing, `Auto` on the default criterion's records."""

JUDGED = tuple(name for name in CRITERIA if name not in ("weightwatcher", "label_information"))
"""Criteria that recorded runs have inputs for: no weights, and heads of one class out of k."""

DEFAULT_CRITERION = "separability"

OURS = (
    DEFAULT,
    "information",
    "component_information",
    "consistency",
    "cluster_entropy",
    "cluster_information",
)
"""No peers: this project's own."""

_DRAWS = 200
_INDEX_SEED = 0
_BOOTSTRAP = 2000


@dataclass(frozen=True)
class Verdict:
    """One criterion on all runs: picking in hindsight, or stopping by a policy.

    Attributes:
        criterion, policy: names; the policy "hindsight" looks at the whole run.
        regrets: ``(R,)`` in accuracy from 0 to 1.
        saved: ``(R,)`` share of the steps left out.
        spearman, weighted_spearman: ``(R,)`` rank agreement of score and test accuracy, without
            the start; NaN where either is constant.
        picks: ``(R,)`` steps.
        label_free: False for the references that see labels of their own.
    """

    criterion: str
    policy: str
    regrets: Floats
    saved: Floats
    spearman: Floats
    weighted_spearman: Floats
    picks: list[int]
    label_free: bool = True

    def summary(self) -> dict[str, Any]:
        low, high = bootstrap_interval(self.regrets)
        return {
            "criterion": self.criterion,
            "policy": self.policy,
            "label_free": self.label_free,
            "regret_mean": float(self.regrets.mean()),
            "regret_low": low,
            "regret_high": high,
            "regret_p90": float(np.quantile(self.regrets, 0.9)),
            "regret_max": float(self.regrets.max()),
            "steps_saved_mean": float(self.saved.mean()),
            "spearman_mean": _nanmean(self.spearman),
            "weighted_spearman_mean": _nanmean(self.weighted_spearman),
        }


@dataclass(frozen=True)
class Judgement:
    """All verdicts on a set of runs.

    Attributes:
        runs: names.
        verdicts: references first.
        label_regrets: m -> mean regret of picking by validation accuracy on m labels.
    """

    runs: list[str]
    verdicts: list[Verdict]
    label_regrets: dict[int, float]

    def find(self, criterion: str, policy: str = "hindsight") -> Verdict:
        for verdict in self.verdicts:
            if (verdict.criterion, verdict.policy) == (criterion, policy):
                return verdict
        raise KeyError(f"{criterion} with {policy} was not judged")

    def summaries(self) -> list[dict[str, Any]]:
        """One row a verdict, with its label equivalent and the difference to the best peer."""
        peers = [
            verdict
            for verdict in self.verdicts
            if verdict.label_free
            and verdict.policy == "hindsight"
            and verdict.criterion not in OURS
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
        pick, stop = self.find(DEFAULT).summary(), self.find(DEFAULT, "auto").summary()
        return _finite(
            {
                "default": {
                    "criterion": DEFAULT,
                    "policy": "auto",
                    **{key: pick[key] for key in ("regret_mean", "regret_p90", "regret_max")},
                    "regret_stop_mean": stop["regret_mean"],
                    "steps_saved_mean": stop["steps_saved_mean"],
                    "label_equivalent": label_equivalent(pick["regret_mean"], self.label_regrets),
                    "label_equivalent_stop": label_equivalent(
                        stop["regret_mean"], self.label_regrets
                    ),
                },
                "label_regrets": {str(m): regret for m, regret in self.label_regrets.items()},
                "rows": self.summaries(),
                "runs": {
                    run: {
                        f"{verdict.criterion} / {verdict.policy}": {
                            "regret": verdict.regrets[i],
                            "pick": verdict.picks[i],
                            "steps_saved": verdict.saved[i],
                        }
                        for verdict in self.verdicts
                    }
                    for i, run in enumerate(self.runs)
                },
            }
        )


@dataclass
class _Tally:
    """What a verdict is made of, run by run."""

    regrets: list[float] = field(default_factory=list)
    saved: list[float] = field(default_factory=list)
    spearman: list[float] = field(default_factory=list)
    weighted: list[float] = field(default_factory=list)
    picks: list[int] = field(default_factory=list)

    def verdict(self, criterion: str, policy: str, label_free: bool) -> Verdict:
        return Verdict(
            criterion,
            policy,
            np.array(self.regrets),
            np.array(self.saved),
            np.array(self.spearman),
            np.array(self.weighted),
            self.picks,
            label_free,
        )


def judge(
    runs: Sequence[Run],
    criteria: dict[str, Criterion],
    policies: dict[str, Any],
    score: Callable[[Run, Criterion], list[Record]] | None = None,
) -> Judgement:
    """
    Args:
        criteria: by the name they go by in the tables. One whose inputs a run lacks is left out, as
            is a reference.
        policies: by name, as `sepstop.utils.registry.build` takes them; their mode
            follows the criterion.
        score: gives a run's records by a criterion; `score_run` by default.

    Raises:
        ValueError: no runs.
    """
    score = score or score_run
    if not runs:
        raise ValueError("expected at least one recorded run")
    usable = {
        name: criterion
        for name, criterion in criteria.items()
        if all(_has(run, criterion) for run in runs)
    }
    tallies: dict[tuple[str, str], _Tally] = {}
    label_regrets: dict[int, list[float]] = {}
    free: dict[str, bool] = {}
    for run in runs:
        for m, regret in label_curve(run).items():
            label_regrets.setdefault(m, []).append(regret)
        histories: dict[str, tuple[list[Record], Mode, bool]] = references(run)
        for name, criterion in usable.items():
            mode: Mode = "max" if criterion.higher_is_better else "min"
            histories[name] = score(run, criterion), mode, True
        histories[DEFAULT] = default_history(run, score), "max", True
        for name, (history, mode, label_free) in histories.items():
            free[name] = label_free
            tally = tallies.setdefault((name, "hindsight"), _Tally())
            best = Auto().pick(history) if name == DEFAULT else best_record(history, mode)
            deciding = history
            if name == DEFAULT and has_information(history):
                deciding = scored_by_information(history)
            _count(tally, run, deciding, best, None, mode)
            for policy_name, policy in _policies_for(name, policies, mode, name in usable).items():
                tally = tallies.setdefault((name, policy_name), _Tally())
                decision = replay(policy, history)
                best = next((r for r in history if r.step == decision.best_step), None)
                stopped = decision.step if decision.stop else None
                _count(tally, run, deciding, best, stopped, mode)
    return Judgement(
        [run.name for run in runs],
        [
            tally.verdict(*key, free[key[0]])
            for key, tally in tallies.items()
            if len(tally.picks) == len(runs)
        ],
        {
            m: float(np.mean(regrets))
            for m, regrets in label_regrets.items()
            if len(regrets) == len(runs)
        },
    )


def _policies_for(
    name: str, policies: dict[str, Any], mode: Mode, is_criterion: bool
) -> dict[str, Policy]:
    if name == DEFAULT:
        return {"auto": Auto()}
    if not is_criterion:
        return {}
    return {
        key: build("policy", {**spec, "mode": mode}, POLICIES) for key, spec in policies.items()
    }


def default_history(run: Run, score: Callable[[Run, Criterion], list[Record]]) -> list[Record]:
    """The records of a Monitor without a choice of criterion."""
    history = score(run, build("criterion", DEFAULT_CRITERION, CRITERIA))
    of = "classes" if "pool_l" in run.arrays else "components"
    name = "information" if of == "classes" else "component_information"
    found = score(run, build("criterion", name, CRITERIA))
    return [
        dataclasses.replace(record, information=other.score, information_of=of)
        for record, other in zip(history, found, strict=True)
    ]


def score_run(run: Run, criterion: Criterion, resamples: int = 20) -> list[Record]:
    """The records that a Monitor with its defaults would have made."""
    pool_size = len(run.arrays["y"])
    size = min(pool_size // 2, 1000)
    chosen = draw_resamples(pool_size, resamples, size, _INDEX_SEED)
    history: list[Record] = []
    previous = None
    neighborhoods = Neighborhoods()
    needs = getattr(criterion, "needs", ("points",))
    for t, step in enumerate(run.steps):
        points, logits = _tensor(run, "pool_e", t), _tensor(run, "pool_l", t)
        inputs = {
            "points": points,
            "logits": logits,
            "previous_logits": previous,
            "corrupted_logits": _tensor(run, "pool_d", t),
        }
        if points is not None and {"neighbors", "neighbor_classes"} & set(needs):
            neighborhoods.add(step, points, logits if "neighbor_classes" in needs else None)
            near = neighborhoods.until(step)
            inputs["neighbors"] = near
            inputs["neighbor_classes"] = None if logits is None else logits.argmax(dim=-1)[near]
        scores = score_resamples(criterion, inputs, chosen)
        low, high = interval(scores, size, pool_size)
        history.append(
            Record(
                step=step,
                epoch=None,
                score=float(np.mean(scores)),
                low=low,
                high=high,
                criterion=criterion.name,
                resamples=tuple(scores),
                resample_size=size,
                pool_size=pool_size,
            )
        )
        previous = logits
    return history


class ScoreCache:
    """`score_run` that keeps its records in files, so that judging again takes seconds.

    A file's name has a hash of the run's arrays, the criterion's settings and the resamples.
    """

    def __init__(self, folder: Path, resamples: int = 20) -> None:
        self.folder, self.resamples = folder, resamples

    def __call__(self, run: Run, criterion: Criterion) -> list[Record]:
        settings = describe(criterion, CRITERIA)
        key = f"{fingerprint(run)} {json.dumps(settings)} {self.resamples} {__version__}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        path = self.folder / f"{run.name}-{criterion.name}-{digest}.jsonl"
        if "name" in settings and path.is_file():
            return read_history(path)
        history = score_run(run, criterion, self.resamples)
        if "name" in settings:
            try_to_write(path, history)
        return history


def references(run: Run) -> dict[str, tuple[list[Record], Mode, bool]]:
    """What there is besides criteria: history, mode and whether no label beyond the training's."""
    known: list[tuple[str, Any, Mode, bool]] = [
        ("oracle", run.test_accuracy, "max", False),
        ("last checkpoint", run.steps, "max", True),
        ("training loss", run.arrays.get("tr_loss"), "min", True),
        ("validation loss", run.arrays.get("va_loss"), "min", False),
        ("validation accuracy", run.arrays.get("va_acc"), "max", False),
    ]
    return {
        name: (
            [
                Record(step, None, float(value))
                for step, value in zip(run.steps, values, strict=True)
            ],
            mode,
            label_free,
        )
        for name, values, mode, label_free in known
        if values is not None
    }


def label_curve(run: Run) -> dict[int, float]:
    """m -> mean regret of picking by accuracy on m labelled examples of the pool."""
    if "pool_l" not in run.arrays:
        return {}
    y = run.arrays["y"]
    right = run.arrays["pool_l"].argmax(axis=-1) == y  # (T, N)
    trained = np.flatnonzero(np.array(run.steps) > 0)
    lost = run.test_accuracy.max() - run.test_accuracy[trained]
    rng = np.random.default_rng(_INDEX_SEED)
    orders = rng.permuted(np.tile(np.arange(len(y)), (_DRAWS, 1)), axis=1)
    curve = {}
    for m in LABELS:
        if m <= len(y):
            counts = right[trained][:, orders[:, :m]].sum(axis=-1)  # (T, draws)
            curve[m] = float(lost[counts.argmax(axis=0)].mean())  # the earliest of equals
    return curve


def label_equivalent(regret: float, curve: dict[int, float]) -> float:
    """The m at which the curve has this regret, between its points on a log scale.

    0 where the regret is above the whole curve, the largest m where it is below.
    """
    if not curve:
        return math.nan
    sizes = sorted(curve)
    # More labels do no harm: what noise the draws leave is flattened.
    falling = np.minimum.accumulate([curve[m] for m in sizes])
    if regret > falling[0]:
        return 0.0
    if regret <= falling[-1]:
        return float(sizes[-1])
    return float(np.exp(np.interp(-regret, -falling, np.log(sizes))))


def bootstrap_interval(values: Floats) -> tuple[float, float]:
    """95 % percentile interval of the mean over runs; NaN for a single run."""
    if len(values) < 2:
        return math.nan, math.nan
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=_BOOTSTRAP, method="percentile", rng=_INDEX_SEED
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def weighted_spearman(scores: Floats, accuracy: Floats) -> float:
    """Spearman's correlation in which high ranks, of either, weigh more.

    References:
        arXiv:2208.07360: the weight of a point is the square of its larger rank.
    """
    ranks = np.stack([stats.rankdata(scores), stats.rankdata(accuracy)]) / len(scores)
    covariance = np.cov(ranks, aweights=ranks.max(axis=0) ** 2)
    spread = math.sqrt(covariance[0, 0] * covariance[1, 1])
    return float(covariance[0, 1] / spread) if spread > 0 else math.nan


def _count(
    tally: _Tally,
    run: Run,
    history: list[Record],
    best: Record | None,
    stopped: int | None,
    mode: Mode,
) -> None:
    accuracy = dict(zip(run.steps, run.test_accuracy, strict=True))
    end = run.steps[-1]
    pick = end if best is None else best.step
    tally.picks.append(pick)
    tally.regrets.append(float(run.test_accuracy.max() - accuracy[pick]))
    tally.saved.append(0.0 if stopped is None else 1 - stopped / end)
    seen = [record for record in history if record.step > 0 and record.is_finite]
    sign = 1 if mode == "max" else -1
    scores = np.array([sign * record.score for record in seen])
    reached = np.array([accuracy[record.step] for record in seen])
    varied = len(seen) > 2 and np.ptp(scores) > 0 and np.ptp(reached) > 0
    tally.spearman.append(float(stats.spearmanr(scores, reached)[0]) if varied else math.nan)
    tally.weighted.append(weighted_spearman(scores, reached) if varied else math.nan)


def _has(run: Run, criterion: Criterion) -> bool:
    needs = set(getattr(criterion, "needs", ("points",)))
    has = {"points", "neighbors"}
    if "pool_l" in run.arrays:
        has |= {"logits", "previous_logits", "neighbor_classes"}
    if "pool_d" in run.arrays:
        has.add("corrupted_logits")
    return needs <= has


def _tensor(run: Run, key: str, t: int) -> torch.Tensor | None:
    return torch.from_numpy(run.arrays[key][t]).float() if key in run.arrays else None


def _nanmean(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _finite(value: Any) -> Any:
    """JSON has no NaN: None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
