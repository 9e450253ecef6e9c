"""Outcomes, verdicts and their statistics, by hand."""

import math

import numpy as np
import pytest
from helpers.recorded import toy_run

from sepstop.bench.verdicts import (
    Judgement,
    Outcome,
    Verdict,
    bootstrap_interval,
    weighted_spearman,
)
from sepstop.types import NO_SCORE, Score, Series


def series(*values, higher_is_better=True):
    """At steps 0, 10, ...; None is no score."""
    scores = tuple(NO_SCORE if value is None else Score(value) for value in values)
    return Series("toy", higher_is_better, tuple(range(0, 10 * len(values), 10)), scores)


def outcome(regret, pick=30):
    return Outcome(pick, regret, 0.0, math.nan, math.nan)


def test_outcome_of_a_run():
    run = toy_run(accuracy=(0.1, 0.5, 0.9, 0.7))
    found = Outcome.of(run, series(9, 1, 2, 3), pick=10, stop_step=20)
    assert (found.pick, found.regret) == (10, pytest.approx(0.4))
    assert found.saved == pytest.approx(1 / 3)
    assert found.spearman == pytest.approx(0.5)  # step 0 is left out
    lower = Outcome.of(run, series(9, 1, 2, 3, higher_is_better=False), pick=10)
    assert lower.saved == 0
    assert lower.spearman == pytest.approx(-0.5)


def test_outcome_without_scores():
    found = Outcome.of(toy_run(), series(None, None, None, None), pick=None)
    assert (found.pick, found.regret) == (30, pytest.approx(0.2))
    assert math.isnan(found.spearman)
    assert math.isnan(found.weighted_spearman)


def test_a_constant_score_has_no_rank_agreement():
    assert math.isnan(Outcome.of(toy_run(), series(0, 1, 1, 1), pick=10).spearman)


def test_weighted_spearman():
    accuracy = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    assert weighted_spearman(accuracy**2, accuracy) == pytest.approx(1)
    assert weighted_spearman(-accuracy, accuracy) == pytest.approx(-1)
    wrong_below = weighted_spearman(np.array([2.0, 1, 3, 4, 5]), accuracy)
    wrong_above = weighted_spearman(np.array([1.0, 2, 3, 5, 4]), accuracy)
    assert wrong_above < wrong_below < 1


def test_bootstrap_interval():
    values = np.array([0.1, 0.2, 0.3, 0.6])
    low, high = bootstrap_interval(values)
    assert 0.1 < low < values.mean() < high < 0.6
    assert all(map(math.isnan, bootstrap_interval(values[:1])))


def test_summary():
    verdict = Verdict("toy", "hindsight", tuple(outcome(regret) for regret in (0.0, 0.1, 0.5)))
    summary = verdict.summary()
    assert summary["regret_mean"] == pytest.approx(0.2)
    assert summary["regret_max"] == 0.5
    assert summary["regret_p90"] == pytest.approx(0.42)
    assert 0 <= summary["regret_low"] < 0.2 < summary["regret_high"] <= 0.5
    assert math.isnan(summary["spearman_mean"])


def test_peers_are_label_free_criteria_of_others_in_hindsight():
    rows = [
        ("oracle", "hindsight", False, 0.0),
        ("neighbor_mi", "hindsight", True, 0.1),
        ("rankme", "hindsight", True, 0.3),
        ("infomax", "hindsight", True, 0.2),
        ("infomax", "plateau", True, 0.1),
    ]
    verdicts = [
        Verdict(name, policy, (outcome(regret), outcome(regret)), free)
        for name, policy, free, regret in rows
    ]
    found = Judgement(["a", "b"], verdicts, {5: 0.4, 10: 0.2}).summaries()
    assert "against" not in found[3]  # the best peer itself
    others = found[:3] + found[4:]
    assert {row["against"] for row in others} == {"infomax"}
    assert [row["difference_mean"] for row in others] == pytest.approx([-0.2, -0.1, 0.1, -0.1])
    assert [row["label_equivalent"] for row in found] == pytest.approx(
        [10, 10, math.sqrt(50), 10, 10]
    )


def test_find():
    judgement = Judgement(["a"], [Verdict("toy", "hindsight", (outcome(0.1),))], {})
    assert judgement.find("toy").picks == [30]
    with pytest.raises(KeyError, match="toy with plateau was not judged"):
        judgement.find("toy", "plateau")
