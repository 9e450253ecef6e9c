"""The judgement of criteria and policies on recorded runs, by the test accuracy of what they keep.

What is kept is a single checkpoint or an average of the weights. Regret is the test accuracy of the
run's best single checkpoint less that of what is kept, so an average may have a regret below 0.
Every mean over runs has a 95 % bootstrap interval over runs. A choice's label equivalent is the
number m of labeled examples at which picking a checkpoint by validation accuracy has the same mean
regret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from sepstop.bench.criteria import COMPARED
from sepstop.bench.judgement import Judgement
from sepstop.bench.label_curve import label_curve
from sepstop.bench.outcomes import Agreement, Outcome
from sepstop.bench.recorded_run import RecordedRun
from sepstop.bench.scored import Scored
from sepstop.bench.scores import can_score, score_run
from sepstop.bench.strata import stratum_of
from sepstop.bench.verdicts import (
    ALL,
    CHECKPOINTS,
    DEFAULT,
    HINDSIGHT,
    ORACLE,
    PLAIN,
    RULE,
    Key,
    Verdict,
)
from sepstop.config import AUTO, SepStopConfig
from sepstop.criteria import CRITERIA
from sepstop.decide.policies import (
    FirstOptimum,
    Patience,
    Plateau,
    default_policy,
    policy_for,
    replay,
)
from sepstop.measure.average import AVERAGES
from sepstop.measure.scorer import criteria_for, looks_at_neighbors
from sepstop.types import CHECKPOINT, Criterion, Policy, Score

KNOWN: dict[str, type] = CRITERIA | COMPARED
"""Criteria by their names on the bench's command line and in its tables."""

JUDGED = (
    "separability",
    "robust_mi",
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
    "self_consistency",
)
"""All criteria but `label_mi` and `pool_loss`, in the order of tables and of ties there. Recorded
runs predict one class out of k, which `label_mi` is not for, and keep no losses of tokens."""

CONTENDERS = (
    "separability",
    "robust_mi",
    "neighbor_mi",
    "entropy",
    "infomax",
    "bnm",
    "churn",
    "consistency",
)
"""Criteria judged by default, on the command line and on the pages of evidence: those of `JUDGED`
that take seconds."""

JUDGED_POLICIES: dict[str, Policy] = {
    "plateau": Plateau(),
    "patience 1": Patience(1),
    "patience 3": Patience(3),
    "patience 5": Patience(5),
    "first optimum": FirstOptimum(),
}
"""Policies judged with every criterion, by their names in tables. A criterion whose default policy
is not among them is judged with that one too, as "auto"."""

Rule = Callable[[RecordedRun], Scored]
"""A choice that is not a criterion: scores of a run's candidates."""


class Scores(Protocol):
    """As `score_run`."""

    def __call__(
        self, run: RecordedRun, criteria: Sequence[Criterion], candidates: Sequence[str], /
    ) -> Mapping[str, Scored]: ...


class _Choice(NamedTuple):
    """A line of the tables on one run."""

    name: str
    candidates: str
    scored: Scored
    policies: Mapping[str, Policy]
    label_free: bool = True


def judge(
    runs: Sequence[RecordedRun],
    criteria: Sequence[Criterion],
    policies: Mapping[str, Policy] = JUDGED_POLICIES,
    scores: Scores = score_run,
    rules: Mapping[str, Rule] | None = None,
    progress: bool = False,
) -> Judgement:
    """Judge each criterion in hindsight and with each policy, beside references and the default.

    Each criterion chooses among the single checkpoints, among each kind of average, among all
    averages, and among all of these; see `candidate_sets`. A criterion, reference or kind of
    average that a run lacks is left out for all runs. So is the default if a run lacks its inputs.

    Args:
        runs: at least one.
        criteria: tables call them by their names, which differ.
        policies: by their names in tables.
        scores: gives a run's scores by name; `score_run`, or a `sepstop.bench.scores.ScoreCache`.
        rules: other choices, by their names in tables, judged as the criteria are.
        progress: show a progress bar.

    Raises:
        ValueError: no runs, or two criteria of one name.
    """
    if not runs:
        raise ValueError("expected at least one recorded run")
    _check_names(criteria)
    sets = candidate_sets(runs)
    outcomes: dict[Key, list[Outcome]] = {}
    label_free: dict[Key, bool] = {}
    for run in tqdm(runs, desc="runs", leave=False, disable=not progress):
        choices = [
            *_references(run, sets),
            *_of_criteria(runs, run, criteria, sets, policies, scores),
            *_of_rules(run, rules or {}, policies),
            *_default(run, sets, scores),
        ]
        for choice in choices:
            for policy, outcome in _outcomes(run, choice):
                key = choice.name, policy, choice.candidates
                outcomes.setdefault(key, []).append(outcome)
                label_free[key] = choice.label_free
        for name, accuracy in run.plain_accuracy.items():
            kept = Outcome(run.steps[-1], name, run.best_accuracy - accuracy)
            outcomes.setdefault((name, HINDSIGHT, PLAIN), []).append(kept)
    verdicts = [
        Verdict(name, policy, tuple(found), label_free.get(key, True), candidates)
        for key, found in outcomes.items()
        for name, policy, candidates in [key]
        if len(found) == len(runs)
    ]
    deciders = {_default_criterion(run).name for run in runs}
    return Judgement(
        [run.name for run in runs],
        verdicts,
        [label_curve(run) for run in runs],
        [stratum_of(run.settings) for run in runs],
        deciders.pop() if len(deciders) == 1 else "",
    )


def candidate_sets(runs: Sequence[RecordedRun]) -> dict[str, tuple[str, ...]]:
    """Sets of candidates that all runs have, by their names in tables.

    Averages come before the checkpoint, as in `sepstop.measure.monitor.Monitor.measure`.
    """
    first, *others = runs
    averages = [name for name in first.averages if all(name in run.averages for run in others)]
    sets: dict[str, tuple[str, ...]] = {CHECKPOINTS: (CHECKPOINT,)}
    sets |= {name: (name,) for name in averages}
    if len(averages) > 1:
        sets["averages"] = tuple(averages)
    if averages:
        sets[ALL] = (*averages, CHECKPOINT)
    return sets


def _of_criteria(
    runs: Sequence[RecordedRun],
    run: RecordedRun,
    criteria: Sequence[Criterion],
    sets: Mapping[str, tuple[str, ...]],
    policies: Mapping[str, Policy],
    scores: Scores,
) -> Iterator[_Choice]:
    """Each criterion on each set of candidates that it can score in all runs."""
    for criterion in criteria:
        usable = {
            name: candidates
            for name, candidates in sets.items()
            if all(can_score(one, criterion, candidates) for one in runs)
        }
        own = default_policy(criterion.name)
        more = {} if own in policies.values() else {AUTO: own}
        for name, scored in _on_sets(run, criterion, usable, scores).items():
            yield _Choice(criterion.name, name, scored, {**policies, **more})


def _on_sets(
    run: RecordedRun,
    criterion: Criterion,
    sets: Mapping[str, tuple[str, ...]],
    scores: Scores,
) -> dict[str, Scored]:
    """The scores of each set of candidates, each candidate scored as rarely as possible.

    The neighbors are those of the first candidate; without neighbors, a candidate's score does not
    depend on the others.
    """
    whole: list[tuple[str, tuple[str, ...], Scored]] = []
    found: dict[str, Scored] = {}
    for name, candidates in sorted(sets.items(), key=lambda item: -len(item[1])):
        first = candidates[0] if looks_at_neighbors(criterion) else ""
        for known, larger, scored in whole:
            if known == first and set(candidates) <= set(larger):
                found[name] = scored.among(candidates)
                break
        else:
            found[name] = scores(run, [criterion], candidates)[criterion.name]
            whole.append((first, candidates, found[name]))
    return {name: found[name] for name in sets}


def _of_rules(
    run: RecordedRun, rules: Mapping[str, Rule], policies: Mapping[str, Policy]
) -> Iterator[_Choice]:
    for name, rule in rules.items():
        yield _Choice(name, RULE, rule(run), policies)


def _default(
    run: RecordedRun, sets: Mapping[str, tuple[str, ...]], scores: Scores
) -> Iterator[_Choice]:
    """What a user gets without choosing, if the run has the inputs of its criterion."""
    config, criterion = SepStopConfig(), _default_criterion(run)
    candidates: list[str] = []
    if config.average:
        candidates += [name for name in AVERAGES if (name,) in sets.values()]
    if not candidates or config.score_checkpoints:
        candidates.append(CHECKPOINT)
    if not can_score(run, criterion, candidates):
        return
    names = {found: name for name, found in sets.items()}
    name = names.get(tuple(candidates), " and ".join(candidates))
    policy = policy_for(config.policy, criterion.name, criterion.higher_is_better)
    scored = scores(run, [criterion], tuple(candidates))[criterion.name]
    yield _Choice(DEFAULT, name, scored, {AUTO: policy})


def _default_criterion(run: RecordedRun) -> Criterion:
    config = SepStopConfig(extra_criteria=())
    (criterion,) = criteria_for(config, run.outputs, run.has_logits)
    return criterion


def _outcomes(run: RecordedRun, choice: _Choice) -> Iterator[tuple[str, Outcome]]:
    """The outcome in hindsight and with each policy, by the policy's name."""
    scored, agreement = choice.scored, Agreement.of(run, choice.scored)
    series = scored.series
    yield HINDSIGHT, Outcome.of(run, scored, series.best_step, agreement=agreement)
    for name, policy in choice.policies.items():
        decision = replay(policy, series)
        stop_step = decision.step if decision.stop else None
        yield name, Outcome.of(run, scored, decision.best_step, stop_step, agreement)


def _check_names(criteria: Sequence[Criterion]) -> None:
    """
    Raises:
        ValueError: two criteria of one name.
    """
    names = [one.name for one in criteria]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"expected criteria of different names, got two called {name!r}; judge them one "
                "after the other"
            )


def _references(run: RecordedRun, sets: Mapping[str, tuple[str, ...]]) -> Iterator[_Choice]:
    """What a criterion is compared with: test accuracy itself, the end, losses, validation."""
    known: list[tuple[str, ArrayLike | None, bool, bool]] = [
        (ORACLE, run.test_accuracy, True, False),
        ("last checkpoint", run.steps, True, True),
        ("training loss", run.arrays.get("tr_loss"), False, True),
        ("validation loss", run.arrays.get("va_loss"), False, False),
        ("validation accuracy", run.arrays.get("va_acc"), True, False),
    ]
    for name, values, higher_is_better, label_free in known:
        if values is not None:
            scored = _scored(run, name, {CHECKPOINT: values}, higher_is_better)
            yield _Choice(name, CHECKPOINTS, scored, {}, label_free)
    if ALL in sets:
        accuracy = {name: run.test_accuracy_of(name) for name in sets[ALL]}
        yield _Choice(ORACLE, ALL, _scored(run, ORACLE, accuracy, True), {}, label_free=False)


def _scored(
    run: RecordedRun, name: str, values: Mapping[str, ArrayLike], higher_is_better: bool
) -> Scored:
    """Scores of candidates, ``(T,)`` each."""
    columns = {candidate: np.asarray(column) for candidate, column in values.items()}
    scores = tuple(
        {candidate: Score(float(column[t])) for candidate, column in columns.items()}
        for t in range(len(run))
    )
    return Scored(name, higher_is_better, tuple(run.steps), scores)
