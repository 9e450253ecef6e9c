"""Label equivalents."""

import math

import pytest
from helpers.recorded import toy_run, without_logits

from sepstop.bench.label_curve import label_curve, label_equivalent


def test_more_labels_lose_less():
    curve = label_curve(toy_run(accuracy=(0.1, 0.5, 0.9, 0.7), pool=400))
    assert list(curve) == [5, 10, 25, 50, 100, 200, 400]
    assert curve[5] > curve[50] >= curve[400] == 0


def test_without_logits_there_is_no_curve():
    assert label_curve(without_logits(toy_run())) == {}


@pytest.mark.parametrize(
    ("regret", "labels"),
    [(0.5, 0), (0.4, 5), (0.3, math.sqrt(50)), (0.2, 10), (0.0, 20), (-1.0, 20)],
)
def test_label_equivalents_are_interpolated(regret, labels):
    assert label_equivalent(regret, {5: 0.4, 10: 0.2, 20: 0.1}) == pytest.approx(labels)


def test_a_rise_of_the_curve_is_noise():
    assert label_equivalent(0.25, {5: 0.3, 10: 0.2, 20: 0.25}) == pytest.approx(math.sqrt(50))


def test_no_curve_no_equivalent():
    assert math.isnan(label_equivalent(0.1, {}))
