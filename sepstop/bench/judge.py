"""The judgement of criteria and policies on recorded runs, by the test accuracy of their picks.

Regret is the best test accuracy of the whole run less that of the pick. Every mean over runs has a
95 % bootstrap interval over runs. A criterion's label equivalent is the number m of labeled
examples at which picking by validation accuracy has the same mean regret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from sepstop.bench.criteria import COMPARED
from sepstop.bench.label_curve import label_curve
from sepstop.bench.recorded_run import RecordedRun
from sepstop.bench.scores import can_score, score_run
from sepstop.bench.verdicts import DEFAULT, HINDSIGHT, Judgement, Outcome, Verdict
from sepstop.config import AUTO, SepStopConfig
from sepstop.criteria import CRITERIA
from sepstop.decide.policies import FirstOptimum, Patience, Plateau, policy_for, replay
from sepstop.measure.scorer import criteria_for
from sepstop.types import Criterion, Policy, Score, Series

KNOWN: dict[str, type] = CRITERIA | COMPARED
"""Criteria by their names on the bench's command line and in its tables."""

JUDGED = (
    "separability",
    "neighbor_mi",
    "component_mi",
    "cluster_entropy",
    "cluster_information",
    "total_persistence",
    "rankme",
    "alpha_req",
    "nesum",
    "stable_rank",
    "self_clustering",
    "coherence",
    "silhouette",
    "calinski_harabasz",
    "entropy",
    "infomax",
    "bnm",
    "snd",
    "churn",
    "consistency",
)
"""Criteria judged by default, in the order of the tables and of ties in docs/evidence.md: all but
`label_mi`, since recorded runs predict one class out of k."""

JUDGED_POLICIES: dict[str, Policy] = {
    "plateau": Plateau(),
    "patience 1": Patience(1),
    "patience 3": Patience(3),
    "patience 5": Patience(5),
    "first optimum": FirstOptimum(),
}
"""Policies judged with every criterion, by their names in tables."""

Scores = Callable[[RecordedRun, Sequence[Criterion]], Mapping[str, Series]]
"""As `score_run`."""


class _Entry(NamedTuple):
    """A line of the tables on one run."""

    name: str
    series: Series
    policies: Mapping[str, Policy]
    label_free: bool = True


def judge(
    runs: Sequence[RecordedRun],
    criteria: Sequence[Criterion],
    policies: Mapping[str, Policy] = JUDGED_POLICIES,
    scores: Scores = score_run,
    progress: bool = False,
) -> Judgement:
    """Judge each criterion in hindsight and with each policy, beside references and the default.

    A criterion or reference whose inputs a run lacks is left out for all runs.

    Args:
        runs: at least one.
        criteria: tables call them by their names, which differ.
        policies: by their names in tables.
        scores: gives a run's scores by name; `score_run`, or a `sepstop.bench.scores.ScoreCache`.
        progress: show a progress bar.

    Raises:
        ValueError: no runs, or two criteria of one name.
    """
    if not runs:
        raise ValueError("expected at least one recorded run")
    usable = [one for one in criteria if all(can_score(run, one) for run in runs)]
    outcomes: dict[tuple[str, str], list[Outcome]] = {}
    label_free: dict[str, bool] = {}
    label_regrets: dict[int, list[float]] = {}
    for run in tqdm(runs, desc="runs", leave=False, disable=not progress):
        for m, regret in label_curve(run).items():
            label_regrets.setdefault(m, []).append(regret)
        for entry in _entries(run, usable, policies, scores):
            label_free[entry.name] = entry.label_free
            for policy, outcome in _outcomes(run, entry):
                outcomes.setdefault((entry.name, policy), []).append(outcome)
    return Judgement(
        [run.name for run in runs],
        [
            Verdict(name, policy, tuple(found), label_free[name])
            for (name, policy), found in outcomes.items()
            if len(found) == len(runs)
        ],
        {
            m: float(np.mean(regrets))
            for m, regrets in label_regrets.items()
            if len(regrets) == len(runs)
        },
    )


def _entries(
    run: RecordedRun,
    criteria: Sequence[Criterion],
    policies: Mapping[str, Policy],
    scores: Scores,
) -> Iterator[_Entry]:
    """References, criteria and the default, in the order of the tables."""
    yield from _references(run)
    config = SepStopConfig(extra_criteria=())
    (default,) = criteria_for(config, run.outputs, run.has_logits)
    series = scores(run, _of_different_names([*criteria, default]))
    for criterion in criteria:
        yield _Entry(criterion.name, series[criterion.name], policies)
    policy = policy_for(config.policy, default.name, default.higher_is_better)
    yield _Entry(DEFAULT, series[default.name], {AUTO: policy})


def _outcomes(run: RecordedRun, entry: _Entry) -> Iterator[tuple[str, Outcome]]:
    """The outcome in hindsight and with each policy, by the policy's name."""
    yield HINDSIGHT, Outcome.of(run, entry.series, entry.series.best_step)
    for name, policy in entry.policies.items():
        decision = replay(policy, entry.series)
        stop_step = decision.step if decision.stop else None
        yield name, Outcome.of(run, entry.series, decision.best_step, stop_step)


def _of_different_names(criteria: Sequence[Criterion]) -> list[Criterion]:
    """The criteria, each once."""
    found: dict[str, Criterion] = {}
    for one in criteria:
        if found.setdefault(one.name, one) != one:
            raise ValueError(
                f"expected criteria of different names, got two called {one.name!r}; judge them "
                "one after the other"
            )
    return list(found.values())


def _references(run: RecordedRun) -> Iterator[_Entry]:
    """What a criterion is compared with: the test accuracy itself, the end, losses, validation."""
    known: list[tuple[str, ArrayLike | None, bool, bool]] = [
        ("oracle", run.test_accuracy, True, False),
        ("last checkpoint", run.steps, True, True),
        ("training loss", run.arrays.get("tr_loss"), False, True),
        ("validation loss", run.arrays.get("va_loss"), False, False),
        ("validation accuracy", run.arrays.get("va_acc"), True, False),
    ]
    for name, values, higher_is_better, label_free in known:
        if values is not None:
            scores = tuple(Score(float(value)) for value in np.asarray(values))
            series = Series(name, higher_is_better, tuple(run.steps), scores)
            yield _Entry(name, series, {}, label_free)
