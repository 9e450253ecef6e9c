import numpy as np
import pytest

from sepstop.criteria.supervised import all_measures, cross_validated, fisher_ratio, thornton


def test_fisher_ratio_by_hand():
    points = np.array([[0.0], [2.0], [10.0], [12.0]])
    # means 1 and 11 around 6: between 4 * 25, within 4 * 1
    assert fisher_ratio(points, np.array([0, 0, 1, 1])) == pytest.approx(25)
    assert fisher_ratio(points[[0, 0, 2, 2]], np.array([0, 0, 1, 1])) == np.inf
    assert fisher_ratio(points, np.array([0, 1, 1, 0])) == pytest.approx(0)


def test_thornton_counts_nearest_neighbors_of_the_same_class():
    points = np.array([[0.0], [1.0], [1.5], [5.0], [5.4]])
    # nearest: 1, 2, 1, 4, 3
    assert thornton(points, np.array([0, 0, 1, 1, 1])) == pytest.approx(3 / 5)
    twins = np.array([[0.0], [0.0], [3.0], [3.0]])
    assert thornton(twins, np.array([0, 1, 1, 1])) == pytest.approx(1 / 2)


@pytest.mark.parametrize("classes", [2, 3])
def test_measures_tell_separate_classes_from_mixed_ones(classes):
    rng = np.random.default_rng(0)
    y = np.arange(90) % classes
    noise = rng.normal(size=(90, 4))
    apart = all_measures(noise + 20 * np.eye(4)[y], y)
    mixed = all_measures(noise, y)
    assert apart["LR accuracy"] == apart["ROC-AUC"] == apart["Thornton"] == 1
    assert mixed["LR accuracy"] < 0.7
    assert 0.3 < mixed["ROC-AUC"] < 0.7
    assert all(apart[name] > mixed[name] for name in apart)
    assert cross_validated(noise, y) == cross_validated(noise, y)
