"""Scores, records and series."""

import math
import pickle

import pytest

from sepstop import Record, Score, Series
from sepstop.types import NO_SCORE

NAN = math.nan


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (Score(0.41234), "0.4123"),
        (Score(0.41234, 0.405, 0.41956), "0.4123 [0.4050, 0.4196]"),
        (Score(-1.0, -2.0, 0.0), "-1.0000 [-2.0000, 0.0000]"),
        (Score(0.4, NAN, 0.5), "0.4000"),
        (Score(0.4, 0.3, math.inf), "0.4000"),
        (Score(NAN), "no score"),
        (Score(NAN, 0.1, 0.2), "no score"),
        (Score(math.inf), "no score"),
    ],
)
def test_text_of_a_score(score, text):
    assert str(score) == f"{score}" == text
    assert score.is_finite == (text != "no score")


def record(step, value=None, **others):
    scores = {} if value is None else {"mi": Score(value)}
    return Record(
        step, None, scores | {name: Score(one) for name, one in others.items()}, 0, 10, 20
    )


def series(*values, higher_is_better=True, start=1):
    """Scores of the steps from ``start`` on."""
    records = [record(step, value) for step, value in enumerate(values, start)]
    return Series.of(records, "mi", higher_is_better)


def test_a_series_is_one_score_of_each_record():
    records = [record(5, 0.1, other=3.0), record(10, 0.4, other=2.0)]
    found = Series.of(records, "mi")
    assert (found.name, found.higher_is_better, found.sign) == ("mi", True, 1)
    assert found.steps == (5, 10)
    assert found.scores == (Score(0.1), Score(0.4))
    assert (found.resample_size, found.pool_size) == (10, 20)
    assert list(found) == [(5, Score(0.1)), (10, Score(0.4))]
    assert len(found) == 2
    other = Series.of(records, "other", higher_is_better=False)
    assert other.scores == (Score(3.0), Score(2.0))
    assert other.sign == -1


def test_a_missing_name_has_no_score():
    found = Series.of([record(5, 0.1), record(10), record(15, 0.2)], "mi")
    assert found.scores == (Score(0.1), NO_SCORE, Score(0.2))
    assert found.best_step == 15
    none = Series.of([record(5, 0.1)], "unknown")
    assert none.steps == (5,)
    assert str(none.scores[0]) == "no score"
    assert none.best_step is None


def test_sizes_are_those_of_the_newest_record():
    older = Record(1, None, {"mi": Score(0.1)}, resample_size=7, pool_size=9)
    assert Series.of([older, record(2, 0.2)], "mi").resample_size == 10
    assert Series.of([record(2, 0.2), older], "mi").pool_size == 9


def test_an_empty_series():
    for empty in (Series.of([], "mi"), series(0.1, 0.2).between(5), series().trained):
        assert len(empty) == 0
        assert list(empty) == []
        assert empty.best_step is None
        assert empty.score_at(1) is NO_SCORE
        assert len(empty.between(0, 10)) == 0
    assert Series.of([], "mi").pool_size == 0


@pytest.mark.parametrize(
    ("values", "higher_is_better", "best"),
    [
        ([0.1, 0.3, 0.2], True, 2),
        ([0.1, 0.3, 0.2], False, 1),
        ([0.3, 0.1, 0.3], True, 1),  # the earliest of equals
        ([0.3, 0.1, 0.1], False, 2),
        ([NAN, 0.1, math.inf], True, 2),
        ([NAN, 0.1, -math.inf], False, 2),
        ([NAN, NAN], True, None),
        ([-0.3, -0.1], True, 2),
        ([0.0, -0.0], True, 1),
    ],
)
def test_the_best_step(values, higher_is_better, best):
    assert series(*values, higher_is_better=higher_is_better).best_step == best


def test_step_0_is_before_training_and_never_the_best():
    found = series(9.0, 0.1, 0.2, start=0)
    assert found.best_step == 2
    assert found.trained.steps == (1, 2)
    assert found.score_at(0) == Score(9.0)
    assert found.trained.score_at(0) is NO_SCORE
    assert series(9.0, start=0).best_step is None


@pytest.mark.parametrize(
    ("bounds", "steps"),
    [
        ((1,), (1, 2, 3, 4)),
        ((2,), (2, 3, 4)),
        ((2, 3), (2, 3)),
        ((0, 1), (1,)),
        ((3, 2), ()),
        ((0, math.inf), (1, 2, 3, 4)),
        ((9,), ()),
    ],
)
def test_a_part_includes_both_ends(bounds, steps):
    whole = series(0.1, 0.2, 0.3, 0.4, higher_is_better=False)
    part = whole.between(*bounds)
    assert part.steps == steps
    assert list(part) == [(step, whole.score_at(step)) for step in steps]
    assert (part.name, part.higher_is_better) == ("mi", False)
    assert (part.resample_size, part.pool_size) == (10, 20)


def test_the_score_of_a_step():
    found = series(0.1, 0.2)
    assert found.score_at(2) == Score(0.2)
    assert found.score_at(3) is NO_SCORE


def test_values_cannot_be_changed_and_travel_between_processes():
    score = Score(0.1, 0.0, 0.2, (0.0, 0.2))
    whole = Record(1, None, {"mi": score})
    for value in (score, whole, Series.of([whole], "mi")):
        with pytest.raises((AttributeError, TypeError)):
            value.step = value.value = value.name = 1
        assert pickle.loads(pickle.dumps(value)) == value
