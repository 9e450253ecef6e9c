"""Outcomes, verdicts, judgements and their statistics, by hand."""

import math

import numpy as np
import pytest
from helpers.recorded import toy_run, with_average
from scipy import stats

from sepstop.bench.judgement import Judgement
from sepstop.bench.outcomes import Agreement, Outcome, weighted_spearman
from sepstop.bench.scored import Scored
from sepstop.bench.verdicts import CHECKPOINTS, Verdict, bootstrap_interval
from sepstop.types import NO_SCORE, Score


def scored(*values, higher_is_better=True, candidate="checkpoint"):
    """Of one candidate, at steps 0, 10, ...; None is no score."""
    scores = tuple({candidate: NO_SCORE if value is None else Score(value)} for value in values)
    return Scored("toy", higher_is_better, tuple(range(0, 10 * len(values), 10)), scores)


def outcome(regret, step=30):
    return Outcome(step, "checkpoint", regret)


def verdict(name, *regrets, policy="hindsight", candidates=CHECKPOINTS, label_free=True):
    return Verdict(name, policy, tuple(map(outcome, regrets)), label_free, candidates)


def test_outcome_of_a_run():
    run = toy_run(accuracy=(0.1, 0.5, 0.9, 0.7))
    found = Outcome.of(run, scored(9, 1, 2, 3), step=10, stop_step=20)
    assert (found.step, found.candidate) == (10, "checkpoint")
    assert found.regret == pytest.approx(0.4)
    assert found.saved == pytest.approx(1 / 3)
    assert Outcome.of(run, scored(9, 1, 2, 3), step=10).saved == 0


def test_an_average_can_beat_the_best_checkpoint():
    run = with_average(toy_run(accuracy=(0.1, 0.5, 0.9, 0.7)), "cumulative", (0.1, 0.6, 0.8, 0.95))
    found = Outcome.of(run, scored(0, 1, 2, 3, candidate="cumulative"), step=30)
    assert (found.step, found.candidate) == (30, "cumulative")
    assert found.regret == pytest.approx(-0.05)


def test_outcome_without_scores():
    found = Outcome.of(toy_run(), scored(None, None, None, None), step=None)
    assert (found.step, found.regret) == (30, pytest.approx(0.2))
    agreement = Agreement.of(toy_run(), scored(None, None, None, None))
    assert math.isnan(agreement.spearman)
    assert math.isnan(agreement.weighted_spearman)


def test_rank_agreement():
    run = toy_run(accuracy=(0.1, 0.5, 0.9, 0.7))
    assert Agreement.of(run, scored(9, 1, 2, 3)).spearman == pytest.approx(0.5)  # without step 0
    lower = Agreement.of(run, scored(9, 1, 2, 3, higher_is_better=False))
    assert lower.spearman == pytest.approx(-0.5)
    assert math.isnan(Agreement.of(run, scored(0, 1, 1, 1)).spearman)


def test_rank_agreement_is_over_all_candidates():
    run = with_average(toy_run(accuracy=(0.1, 0.5, 0.9, 0.7)), "cumulative", (0.1, 0.6, 0.8, 0.95))
    own, average = (9, 1, 2, 3), (9, 4, 5, 6)
    scores = tuple(
        {"checkpoint": Score(a), "cumulative": Score(b)} for a, b in zip(own, average, strict=True)
    )
    found = Agreement.of(run, Scored("toy", True, (0, 10, 20, 30), scores))
    expected = stats.spearmanr([1, 2, 3, 4, 5, 6], [0.5, 0.9, 0.7, 0.6, 0.8, 0.95])[0]
    assert found.spearman == pytest.approx(expected)


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


def test_the_interval_is_scipys():
    values = np.random.default_rng(1).normal(size=17)
    found = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=0)
    low, high = found.confidence_interval
    assert bootstrap_interval(values) == pytest.approx((low, high))


def test_summary():
    summary = verdict("toy", -0.1, 0.1, 0.6).summary()
    assert summary["regret_mean"] == pytest.approx(0.2)
    assert summary["regret_median"] == pytest.approx(0.1)
    assert summary["regret_max"] == 0.6
    assert summary["regret_p90"] == pytest.approx(0.5)
    assert -0.11 < summary["regret_low"] < 0.2 < summary["regret_high"] < 0.61
    assert math.isnan(summary["spearman_mean"])


def test_peers_are_label_free_picks_of_one_checkpoint_by_others():
    verdicts = [
        verdict("oracle", 0.0, 0.0, label_free=False),
        verdict("EMA 0.99", 0.0, 0.0, candidates="plain"),
        verdict("neighbor_mi", 0.1, 0.1),
        verdict("rankme", 0.3, 0.3),
        verdict("infomax", 0.2, 0.2),
        verdict("infomax", 0.1, 0.1, policy="plateau"),
        verdict("infomax", 0.1, 0.1, candidates="averages"),
    ]
    found = Judgement(["a", "b"], verdicts, [{5: 0.4, 10: 0.2}] * 2).summaries()
    assert "against" not in found[4]  # the best peer itself
    others = found[:4] + found[5:]
    assert {row["against"] for row in others} == {"infomax"}
    assert [row["difference_mean"] for row in others] == pytest.approx(
        [-0.2, -0.2, -0.1, 0.1, -0.1, -0.1]
    )
    assert [row["label_equivalent"] for row in found] == pytest.approx(
        [10, 10, 10, math.sqrt(50), 10, 10, 10]
    )


def test_the_defaults_paired_difference():
    """It is of each run, so a difference that is the same in all runs has no spread."""
    verdicts = [
        verdict("last checkpoint", 0.05, 0.25, 0.45),
        verdict("EMA 0.99", 0.0, 0.3, 0.3, candidates="plain"),
        verdict("default", 0.0, 0.2, 0.4, candidates="averages"),
    ]
    last, ema, default = Judgement(["a", "b", "c"], verdicts, [{}] * 3).summaries()
    for part in ("mean", "low", "high"):
        assert last[f"default_less_{part}"] == pytest.approx(-0.05)
    low, high = bootstrap_interval(np.array([0.0, -0.1, 0.1]))
    assert ema["default_less_mean"] == pytest.approx(0.0)
    assert (ema["default_less_low"], ema["default_less_high"]) == pytest.approx((low, high))
    assert last["regret_low"] < last["regret_high"]
    assert "default_less_mean" not in default


def test_strata():
    verdicts = [
        verdict("oracle", 0.0, 0.0, 0.0, label_free=False),
        verdict("infomax", 0.1, 0.5, 0.3),
        verdict("default", -0.1, 0.4, 0.1, candidates="averages"),
        verdict("default", 0.0, 0.4, 0.1, policy="auto", candidates="averages"),
    ]
    curves = [{5: 0.4}, {5: 0.2}, {5: 0.1}]
    found = Judgement(["a", "b", "c"], verdicts, curves, ["harsh", "clean", "harsh"])
    assert list(found.by_stratum) == ["clean", "harsh"]  # in the order of the tables
    harsh = found.by_stratum["harsh"]
    assert harsh.runs == ["a", "c"]
    assert harsh.find("default").regrets == pytest.approx([-0.1, 0.1])
    assert harsh.label_regrets == {5: pytest.approx(0.25)}
    answer = found.as_json()
    (default,) = (
        row
        for row in answer["strata"]["harsh"]["question"]
        if row["criterion"] == "default" and row["policy"] == "hindsight"
    )
    assert default["regret_mean"] == pytest.approx(0.0)
    rows = {name: part["question"] for name, part in answer["strata"].items()}
    names = [[row["criterion"] for row in part] for part in (*rows.values(), answer["question"])]
    assert names[0] == names[1] == names[2]  # the same choices everywhere


def test_the_question_is_answered_by_few_rows():
    """The references, the default, and the three best of each kind."""
    free = [verdict(f"criterion {i}", i / 10) for i in range(9)]
    averaged = [verdict(f"criterion {i}", -i / 10, candidates="averages") for i in range(9)]
    references = [
        verdict("oracle", 0.0, label_free=False),
        verdict("oracle", -2.0, candidates="all", label_free=False),
        verdict("last checkpoint", 0.7),
        verdict("EMA 0.99", 0.05, candidates="plain"),
    ]
    ours = [
        verdict("neighbor_mi", 0.9),
        verdict("default", -0.5, candidates="cumulative"),
        verdict("default", -0.4, policy="auto", candidates="cumulative"),
    ]
    verdicts = [*references, *free, *averaged, *ours]
    found = Judgement(["a"], verdicts, [{}], ["clean"], decides="neighbor_mi").question()
    assert [(name, policy == "auto", candidates) for name, policy, candidates in found] == [
        ("oracle", False, "all"),
        ("criterion 8", False, "averages"),
        ("criterion 7", False, "averages"),
        ("criterion 6", False, "averages"),
        ("default", False, "cumulative"),
        ("default", True, "cumulative"),
        ("oracle", False, "checkpoints"),
        ("criterion 0", False, "checkpoints"),
        ("EMA 0.99", False, "plain"),
        ("criterion 1", False, "checkpoints"),
        ("criterion 2", False, "checkpoints"),
        ("last checkpoint", False, "checkpoints"),
        ("neighbor_mi", False, "checkpoints"),
    ]


def test_find():
    found = Judgement(
        ["a"], [verdict("toy", 0.1), verdict("toy", -0.1, candidates="averages")], [{}]
    )
    assert found.find("toy").picks == [30]
    assert found.find("toy").regrets == pytest.approx([0.1])
    assert found.find("toy", candidates="averages").regrets == pytest.approx([-0.1])
    with pytest.raises(KeyError, match="toy with plateau was not judged"):
        found.find("toy", "plateau")
    with pytest.raises(KeyError, match="toy of recent with hindsight was not judged"):
        found.find("toy", candidates="recent")
