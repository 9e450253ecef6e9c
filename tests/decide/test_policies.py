import math
import re

import numpy as np
import pytest
import torch

from sepstop.decide.policies import (
    FirstOptimum,
    PastPeak,
    Patience,
    Plateau,
    decide,
    default_policy,
    policy_for,
    replay,
)
from sepstop.types import Decision, Score, Series

NAN, INF = math.nan, math.inf
NAME = "separability"


class Lower(list):
    """Scores that are better when lower."""


def series_of(scores, start=10):
    """A series at steps 10, 20, ..."""
    steps = tuple(range(start, start + 10 * len(scores), 10))
    return Series(NAME, not isinstance(scores, Lower), steps, tuple(map(Score, scores)))


def resampled(*rows, higher=True, resample_size=20, pool_size=40):
    """A series at steps 10, 20, ... with these resamples; half the pool: jackknife factor 1."""
    steps = tuple(range(10, 10 + 10 * len(rows), 10))
    scores = tuple(Score(sum(row) / len(row), resample_values=tuple(row)) for row in rows)
    return Series(NAME, higher, steps, scores, resample_size, pool_size)


def stop_and_best(policy, series):
    decision = replay(policy, series)
    return (decision.step if decision.stop else None), decision.best_step


PATIENCE = [
    # scores, settings (of a patience without warm-up), stop_step, best_step
    ([1, 2, 3, 4], {"patience": 2}, None, 40),
    ([1, 2, 1, 1], {"patience": 2}, 40, 20),
    ([1, 2, 1, 3, 1, 1], {"patience": 2}, 60, 40),
    ([1, 1, 1], {"patience": 2}, 30, 10),  # equal is no improvement
    ([2, 1, 3], {"patience": 1}, 20, 10),
    ([1, 2, 1, 1, 1, 1], {}, None, 20),  # five by default
    ([1, 2, 1, 1, 1, 1, 1], {}, 70, 20),
    ([5, 4, 3, 2, 1, 0], {"patience": None}, None, 10),
    ([1, 1.25, 1.5, 9], {"patience": 2, "min_delta": 0.5}, 30, 30),
    ([1, 1.25, 1.75, 1.75], {"patience": 2, "min_delta": 0.5}, None, 30),
    ([5, 4, 3, 2], {"patience": 1, "warmup": 3}, 40, 10),
    ([5, 4, 3, 2], {"patience": 2, "warmup": 3}, None, 10),
    ([1, 0.5, 0.5, 0.5], {"patience": 1, "cooldown": 2}, 40, 10),
    ([1, 0.5, 2, 0.5, 0.5, 0.5], {"patience": 1, "cooldown": 2}, 60, 30),
    (Lower([3, 2, 2.5, 2]), {"patience": 2}, 40, 20),
    (Lower([1, 2, 3]), {"patience": 2}, 30, 10),
    ([0.2, 0.5, 0.9], {"patience": 2, "baseline": 1}, 20, 20),
    ([0.5, 1.5, 1, 2], {"patience": 2, "baseline": 1}, None, 40),
    ([1, 1], {"patience": 2, "baseline": 1}, 20, 10),  # not over it
    (Lower([2, 1.5]), {"patience": 2, "baseline": 1}, 20, 20),
    (Lower([2, 0.5]), {"patience": 2, "baseline": 1}, None, 20),
    ([1, 0.5, 0.4], {"patience": None, "divergence_threshold": 0.5}, 30, 10),
    ([0.1, 0.1, 1, 0.1], {"patience": None, "divergence_threshold": 0.5, "warmup": 2}, 40, 30),
    (Lower([1, 10, 11]), {"patience": None, "divergence_threshold": 10}, 30, 10),
    ([0.5, 0.9, 1], {"stopping_threshold": 0.9}, 20, 20),
    ([0.95, 0.5, 0.6, 0.9], {"stopping_threshold": 0.9, "warmup": 2}, 40, 10),
    (Lower([0.5, 0.2, 0.1]), {"stopping_threshold": 0.1}, 30, 30),
    ([1, NAN, NAN, NAN], {"patience": 2}, None, 10),
    ([1, NAN, 0.5, NAN, 0.5], {"patience": 2}, 50, 10),
    ([1, INF, 0.5, -INF, 0.5], {"patience": 2}, 50, 10),
    ([NAN, NAN, NAN], {"patience": 2}, None, None),
    ([1, NAN, 2], {"nonfinite": "stop"}, 20, 10),
    ([1, -INF, 2], {"nonfinite": "stop"}, 20, 10),
    ([NAN], {"nonfinite": "stop"}, 10, None),
]


@pytest.mark.parametrize(("scores", "settings", "stop_step", "best_step"), PATIENCE)
def test_patience(scores, settings, stop_step, best_step):
    policy = Patience(**{"warmup": 0, **settings})
    assert stop_and_best(policy, series_of(scores)) == (stop_step, best_step)


def test_patience_counts_from_the_start_by_default():
    assert stop_and_best(Patience(patience=1), series_of([5, 4, 3, 2, 1])) == (20, 10)


@pytest.mark.parametrize(
    ("gains", "level", "higher", "stop_step"),
    [
        # mean 0.15, error sqrt(0.01 / 3): t = 2.598, one-sided p = 0.040 with 3 degrees
        ((0.1, 0.2, 0.2, 0.1), 0.05, True, None),
        ((0.1, 0.2, 0.2, 0.1), 0.03, True, 20),
        ((-0.1, -0.2, -0.2, -0.1), 0.05, False, None),
        ((-0.1, -0.2, -0.2, -0.1), 0.03, False, 20),
        # higher on the whole, but all over the place: t = 0.05 / 0.3 < 1
        ((0.4, -0.3, 0.2, -0.1), 0.05, True, 20),
    ],
)
def test_patience_with_significance(gains, level, higher, stop_step):
    before = (0.5, 0.6, 0.4, 0.7)
    after = [value + gain for value, gain in zip(before, gains, strict=True)]
    policy = Patience(patience=1, warmup=0, significance=level)
    # The step to keep has the best score, significant or not.
    assert stop_and_best(policy, resampled(before, after, higher=higher)) == (stop_step, 20)


def test_significance_is_tested_against_the_last_improvement_that_counted():
    noisy = [(0.5, 0.5, 0.5, 0.5), (0.9, 0.2, 0.7, 0.4), (1.0, 1.1, 1.1, 1.0)]
    policy = Patience(patience=2, warmup=0, significance=0.05)
    assert stop_and_best(policy, resampled(*noisy)) == (None, 30)


@pytest.mark.parametrize(
    "history",
    [
        pytest.param(series_of([1, 2]), id="no resamples"),
        pytest.param(resampled([1.0], [2.0]), id="one resample"),
        pytest.param(resampled([1.0, 2.0], [2.0, 3.0], resample_size=40), id="nothing left out"),
    ],
)
def test_significance_needs_resamples(history):
    with pytest.raises(ValueError, match="at least 2 resamples that leave points out"):
        Patience(significance=0.05)(history)


PLATEAU = [
    # scores, settings (of window=2, tolerance=0.1, warmup=3), stop_step, best_step
    ([0, 1, 2, 3, 4], {}, None, 50),
    ([0, 5, 9.5, 10, 10], {}, 50, 40),  # 0.5 of 10 in the last two
    ([0, 5, 9.5, 10, 10], {"tolerance": 0.02}, None, 40),
    ([0, 5, 9.5, 10, 10, 10], {"tolerance": 0.02}, 60, 40),
    ([0, 5, 5.1, 5.1, 5.1], {"tolerance": 0}, 50, 30),
    ([0, 10, 10.5], {"window": 1, "warmup": 2}, 30, 30),
    ([0, 5, 9.5, 10, 10], {"window": 3}, None, 40),
    ([0, 10, 10.5, 10.6, 10.6], {"window": 1, "warmup": 5}, 50, 40),
    ([1, 1, 1, 1], {"window": 3, "warmup": 0}, 40, 10),  # nothing to compare a window with before
    ([5, 0, 4, 8, 9.2, 10, 10], {"warmup": 4}, 70, 60),  # 0.8 of 10; it would be 0.8 of 5
    ([0, 5, 10, -90], {}, None, 30),  # a new lowest score: no plateau to judge
    ([5, 4, 3, 2], {}, None, 10),  # only falling is no plateau
    ([5, 0, 4], {}, None, 10),  # climbing out of a dip
    ([5, 0, 4, 4, 4], {}, 50, 10),  # out of it and flat
    ([1, 1, 1], {}, 30, 10),
    (Lower([10, 5, 0.5, 0, 0]), {}, 50, 40),
    ([0, NAN, 5, 9.5, 10, 10], {}, 60, 50),
    ([0, INF, 5, 9.5, 10, 10], {}, 60, 50),
    ([0, 1, 2, 3, NAN, 4], {"nonfinite": "stop"}, 50, 40),
    ([NAN, NAN, NAN, NAN], {}, None, None),
]


@pytest.mark.parametrize(("scores", "settings", "stop_step", "best_step"), PLATEAU)
def test_plateau(scores, settings, stop_step, best_step):
    policy = Plateau(**{"window": 2, "tolerance": 0.1, "warmup": 3, **settings})
    assert stop_and_best(policy, series_of(scores)) == (stop_step, best_step)


POLICIES = [
    Patience(),
    Patience(patience=1, warmup=0, min_delta=0.1),
    Patience(patience=2, warmup=1, cooldown=1),
    Patience(
        patience=3,
        warmup=0,
        baseline=0.9,
        divergence_threshold=-1.5,
        stopping_threshold=1.5,
        nonfinite="stop",
    ),
    Plateau(),
    Plateau(window=1, tolerance=0, warmup=0),
    Plateau(window=2, tolerance=0.4, warmup=3, nonfinite="stop"),
]


def random_series():
    generator = torch.Generator().manual_seed(0)
    for length in range(25):
        scores = torch.randn(length, generator=generator).cumsum(0) / 4
        lost = torch.rand(length, generator=generator) < 0.1
        kind = Lower if length % 2 else list
        yield series_of(kind(scores.masked_fill(lost, NAN).tolist()))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_replay_equals_deciding_online_and_later_scores_change_nothing(policy):
    for series in random_series():
        decision = policy(series.between(0, -1))
        for step in series.steps:
            decision = policy(series.between(0, step))
            if decision.stop:
                break
        assert replay(policy, series) == decision
        assert policy(series) == decision  # also if the series is longer than the run


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_policies_are_pure(policy):
    for series in random_series():
        assert policy(series) == policy(series)


def test_replay_ends_at_the_first_stop_of_any_function():
    def at_two_or_four(series):
        step = series.steps[-1] if series.steps else None
        return Decision(len(series) in (2, 4), step, "my own", step)

    assert replay(at_two_or_four, series_of([1, 2, 3, 4, 5])).step == 20
    assert replay(at_two_or_four, series_of([1])) == Decision(False, 10, "my own", 10)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_empty_series(policy):
    decision = replay(policy, series_of([]))
    assert (decision.stop, decision.best_step, decision.step) == (False, None, None)


def test_decisions_of_a_policy_of_ones_own_are_plain_values():
    def stops_at_the_third(series):
        return Decision(np.bool_(len(series) >= 3), np.int64(7), None)

    decision = replay(stops_at_the_third, series_of([1, 3, 2, 5]))
    assert decision == Decision(
        True, 20, "no reason given", 30
    )  # where it named no step, the newest
    assert type(decision.stop) is bool


@pytest.mark.parametrize(
    ("series", "best_step"),
    [
        (series_of([1, 3, 2]), 20),
        (series_of(Lower([1, 3, 2])), 10),
        (series_of([1, 3, 3]), 20),  # the earliest of equals
        (series_of(Lower([3, 1, 1])), 20),
        (series_of([NAN, 1, NAN]), 20),
        (series_of([INF, 1, -INF]), 20),
        (series_of([9, 1, 2], start=0), 20),  # no checkpoint of step 0
        (series_of([9], start=0), None),
        (series_of(Lower([NAN])), None),
        (series_of([]), None),
    ],
)
def test_best_step(series, best_step):
    assert series.best_step == best_step


@pytest.mark.parametrize(
    ("policy", "stop_step"),
    [(Patience(patience=1, warmup=2), 30), (Plateau(window=1, warmup=3), 30)],
)
def test_step_0_is_no_evaluation(policy, stop_step):
    assert stop_and_best(policy, series_of([9, 3, 3, 3], start=0)) == (stop_step, 10)


REASONS = [
    # policy, scores, why, best as the reason names it
    (Patience(2, warmup=0), [1, 2, 1, 1], "no improvement on step 20 in 2 evaluations", (2, 20)),
    (Patience(1, 0.5, 0), [1, 1.25], "on step 10 in 1 .* [(]more than 0.5[)]", (1.25, 20)),
    (Patience(1, warmup=0, baseline=3), [1], "no improvement on the baseline in 1 eval", (1, 10)),
    (
        Patience(warmup=0, divergence_threshold=0.5),
        [1, 0.25],
        "y 0.2500 at step 20 is worse than",
        (1, 10),
    ),
    (
        Patience(warmup=0, stopping_threshold=0.9),
        [0.95],
        "y 0.9500 at step 10 reached the stop",
        (0.95, 10),
    ),
    (Patience(warmup=0, nonfinite="stop"), [1, NAN], "y at step 20 is not a finite n", (1, 10)),
    (Patience(warmup=3), [1, 2], "warm-up, evaluation 2 of 3", (2, 20)),
    (Patience(warmup=0), [2, 1], "1 of 5 evaluations without improvement", (2, 10)),
    (Plateau(2, 0.1, 3), [0, 5, 9.5, 10, 10], "last 2 .* brought 5.0% of the whole gain", (10, 40)),
    (Plateau(), [1, 2], "warm-up, evaluation 2 of 5", (2, 20)),
]


@pytest.mark.parametrize(("policy", "scores", "why", "best"), REASONS)
def test_reason_says_why_and_names_the_best_step(policy, scores, why, best):
    reason, _, ending = policy(series_of(scores)).reason.partition("; ")
    assert re.search(why, reason)
    assert ending == "best is separability {:.4f} at step {}".format(*best)


def test_reason_where_nothing_could_be_scored():
    reason = Plateau()(series_of([NAN])).reason
    assert reason == "nothing measured yet; nothing could be scored yet"


OUT_OF_RANGE_IN_BOTH = [
    ({"warmup": -1}, "expected `warmup` >= 0, got -1"),
    ({"nonfinite": "keep"}, "expected `nonfinite` 'skip' or 'stop', got 'keep'"),
]
OUT_OF_RANGE = [
    (Patience, {"patience": 0}, "expected `patience` >= 1 or None, got 0"),
    (Patience, {"min_delta": -0.1}, "expected `min_delta` >= 0, got -0.1"),
    (Patience, {"min_delta": NAN}, "expected `min_delta` >= 0, got nan"),
    (Patience, {"cooldown": -1}, "expected `cooldown` >= 0, got -1"),
    (Patience, {"significance": 0}, "expected `significance` between 0 and 1, got 0"),
    (Patience, {"significance": 1}, "expected `significance` between 0 and 1, got 1"),
    (Plateau, {"window": 0}, "expected `window` >= 1, got 0"),
    (Plateau, {"tolerance": 1}, "expected `tolerance` from 0 to below 1, got 1"),
    (Plateau, {"tolerance": -0.1}, "expected `tolerance` from 0 to below 1, got -0.1"),
    *((policy, *row) for policy in (Patience, Plateau) for row in OUT_OF_RANGE_IN_BOTH),
]


@pytest.mark.parametrize(("policy", "settings", "message"), OUT_OF_RANGE)
def test_settings_out_of_range(policy, settings, message):
    with pytest.raises(ValueError, match=message):
        policy(**settings)


@pytest.mark.parametrize(
    ("scores", "step", "stop", "best_step"),
    [
        ([5, 4], 20, True, 10),  # the stop itself
        ([5, 4, 3], 30, False, 10),  # somebody went on: afresh from 3
        ([5, 4, 3, 4], 40, False, 10),
        ([5, 4, 3, 2], 40, True, 10),
        ([5, 4, 3, 2, 6], 50, False, 50),  # gone on twice
        ([1, 2, 3], 30, False, 30),
    ],
)
def test_a_run_that_went_on_after_a_stop_is_decided_afresh(scores, step, stop, best_step):
    decision = decide(Patience(patience=1), series_of(scores))
    assert (decision.step, decision.stop, decision.best_step) == (step, stop, best_step)


def test_the_criterion_picks_whatever_the_policy_says():
    series, lower = series_of([0.1, 0.9, 0.3]), series_of(Lower([0.1, 0.9, 0.3]))

    def newest(series):
        return Decision(False, series.steps[-1] if series.steps else None, "newest", None)

    assert replay(newest, series).best_step == decide(newest, series).best_step == 20
    assert decide(newest, lower).best_step == 10


@pytest.mark.parametrize("step", [-5, 31])
def test_a_policy_that_names_a_step_it_never_saw_is_refused(step):
    with pytest.raises(
        ValueError, match=f"expected a decision on a step from 0 to 30, got one on step {step}"
    ):
        decide(lambda series: Decision(False, None, "so", step), series_of([0.1, 0.9, 0.3]))


def test_a_policy_that_names_the_same_step_for_ever_ends():
    def stubborn(series):
        return Decision(len(series) > 0, None, "so", 10)

    assert decide(stubborn, series_of([0.1, 0.9, 0.3])).stop


@pytest.mark.parametrize(
    ("policy", "scores", "stop", "best"),
    [
        # averages of 2: 2, 3, 2.5
        (FirstOptimum(window=2), [1, 3, 3, 2], 40, 20),
        (FirstOptimum(window=2), Lower([3, 1, 1, 2]), 40, 20),
        (FirstOptimum(window=1), [1, 3, 2.9], 30, 20),
        (FirstOptimum(window=1), [1, 2, 2, 3], None, 40),  # flat is no turn
        (FirstOptimum(window=3), [3, 2, 1], None, 10),  # one average only
        (FirstOptimum(window=2), [1, NAN, 3, 3, 2], 50, 30),
        (FirstOptimum(window=2, nonfinite="stop"), [1, NAN, 3], 20, 10),
        (FirstOptimum(), [], None, None),
    ],
)
def test_first_optimum(policy, scores, stop, best):
    assert stop_and_best(policy, series_of(scores)) == (stop, best)


def test_first_optimum_says_why_and_refuses_what_can_not_be():
    decision = replay(FirstOptimum(window=1), series_of([0.5, 0.25]))
    assert "the average of 1 evaluations changed by -0.25, its first turn" in decision.reason
    with pytest.raises(ValueError, match="expected `window` >= 1, got 0"):
        FirstOptimum(window=0)


@pytest.mark.parametrize(
    ("policy", "scores", "stop", "best"),
    [
        (PastPeak(), [0.1, 0.1, 0.1, 1, 0.71, 0.71, 0.71], None, 40),
        (PastPeak(), [0.1, 0.1, 0.1, 1, 0.69, 0.69, 0.69], 70, 40),
        (PastPeak(), [0.1, 0.1, 0.1, 1, 0.2, 0.2], None, 40),  # two low scores show nothing yet
        (PastPeak(), [0.1, 0.1, 0.1, 1, 0.2, 0.2, 1.1], None, 70),
        (PastPeak(), [1, 0.9, 0.9], None, 10),  # old, but two evaluations ago
        (PastPeak(), [1, 0.9, 0.9, 0.9], 40, 10),
        (PastPeak(), [0.1, 1, 0.9, 0.9, 0.9], 50, 20),  # (50 - 20) / 50
        (PastPeak(), [0.1, 0.1, 1, 0.9, 0.9, 0.9, 0.9], None, 30),
        (PastPeak(), [0.1, 0.1, 1, 0.9, 0.9, 0.9, 0.9, 0.9], 80, 30),
        (PastPeak(max_age=0.5), [0.1, 1, 0.9, 0.9, 1], 50, 20),  # equal is no improvement
        (PastPeak(), [0, -1, 0, 0, 0, 0, 0], None, 10),  # nothing to go by
        (PastPeak(), [0, 0, 0, 0, 0.5, 0.3, 0.3, 0.3], 80, 50),
        (PastPeak(), [1, NAN, 0.9, 0.9], None, 10),  # an evaluation that failed is not counted
        (PastPeak(nonfinite="stop"), [1, NAN, 0.9], 20, 10),
        (PastPeak(max_drop=0.05, min_evaluations=1), [1, 0.9], 20, 10),
        (PastPeak(min_evaluations=1), [1, 0.9, 0.9], 30, 10),
        (PastPeak(), [], None, None),
        (PastPeak(min_best=0.1), [0.1, 0.02, 0.02, 0.02, 0.02], None, 10),  # too low to go by
        (PastPeak(min_best=0.1), [0.1, 0.02, 0.02, 0.5, 0.3, 0.3, 0.3], 70, 40),
    ],
)
def test_past_peak(policy, scores, stop, best):
    assert stop_and_best(policy, series_of(scores)) == (stop, best)


@pytest.mark.parametrize(
    ("scores", "stop", "best"),
    [
        ((0.3, 0.1, 0.0, 0.0, 0.0), None, 10),  # falls from the start: no peak
        ((0.3, 0.1, 0.0, 0.0, 0.2, 0.5, 0.3, 0.3, 0.3), 90, 60),  # past the peak since
        ((0.3, 0.1, 0.2, 0.19, 0.1, 0.1), 60, 10),  # not below its lowest
        ((0.1, 0.2, 0.5, 0.3, 0.3, 0.3), 60, 30),  # rises from the start, as without
        ((0.0, 0.5, 0.0, 0.0, 0.0), 50, 20),  # collapses
    ],
)
def test_past_the_peak_since_the_lowest_score(scores, stop, best):
    policy = PastPeak(since_lowest=True)
    assert stop_and_best(policy, series_of(scores)) == (stop, best)


def test_past_peak_says_why_and_refuses_what_can_not_be():
    decision = replay(PastPeak(), series_of([0.5, 0.25]))
    assert "50% below step 10, 50% of the steps ago; best is" in decision.reason
    for options, message in (
        ({"max_drop": 0}, "expected `max_drop` between 0 and 1, got 0"),
        ({"max_age": 1}, "expected `max_age` between 0 and 1, got 1"),
        ({"min_evaluations": 0}, "expected `min_evaluations` >= 1, got 0"),
        ({"min_best": -0.1}, "expected `min_best` >= 0, got -0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            PastPeak(**options)

    waiting = replay(PastPeak(min_best=0.6), series_of([0.5, 0.25])).reason
    assert waiting.startswith("no separability above 0.6 yet, so there is no evidence to stop")
    with pytest.raises(ValueError, match="better when higher, got 'separability'"):
        PastPeak()(series_of(Lower([1, 2])))


# By default


def test_the_default_policy_fits_the_score():
    assert default_policy("robust_mi") == PastPeak(min_best=0.2)
    assert default_policy("neighbor_mi") == PastPeak(min_best=0.2)
    assert default_policy("label_mi") == PastPeak(since_lowest=True)
    for name in ("component_mi", "consistency", "separability", "infomax", "ones_own"):
        assert default_policy(name) == Plateau()


def test_the_policy_of_a_configuration():
    assert policy_for("auto", "robust_mi", True) == PastPeak(min_best=0.2)
    assert policy_for({"name": "patience", "patience": 2}, "mine", False) == Patience(2)
    with pytest.raises(ValueError, match="past_peak needs a score that is better when higher"):
        policy_for("past_peak", "mine", False)
    with pytest.raises(ValueError, match="unknown policy 'auto2'"):
        policy_for("auto2", "mine", True)
