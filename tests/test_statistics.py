"""Standard errors, intervals and p-values: by hand, coverage, and what has none."""

import math

import numpy as np
import pytest
import scipy.stats

from sepstop.measure.resampling import draw_resamples
from sepstop.statistics import improvement_p_value, interval, standard_error

VALUES = [0.4, 0.6, 0.5, 0.7]  # mean 0.55, squared deviations 0.05: variance 0.05 / 3


@pytest.mark.parametrize(
    ("resample_size", "pool_size", "factor"), [(50, 100, 1.0), (80, 100, 2.0), (20, 100, 0.5)]
)
def test_standard_error_by_hand(resample_size, pool_size, factor):
    error = standard_error(VALUES, resample_size, pool_size)
    assert error == pytest.approx(factor * math.sqrt(0.05 / 3))


@pytest.mark.parametrize(
    ("values", "resample_size", "pool_size"),
    [([], 50, 100), ([0.5], 50, 100), (VALUES, 100, 100)],
    ids=["no value", "one value", "nothing left out"],
)
def test_no_standard_error(values, resample_size, pool_size):
    assert math.isnan(standard_error(values, resample_size, pool_size))


def test_interval_by_hand():
    half = 3.182446 * math.sqrt(0.05 / 3)  # 97.5 % quantile of Student's t with 3 degrees
    assert interval(VALUES, 50, 100) == pytest.approx((0.55 - half, 0.55 + half), rel=1e-6)


def test_interval_of_equal_values_is_a_point():
    assert interval([0.5, 0.5, 0.5], 50, 100) == (0.5, 0.5)


@pytest.mark.parametrize(("values", "resample_size"), [([0.5], 50), (VALUES, 100)])
def test_no_interval(values, resample_size):
    assert all(math.isnan(bound) for bound in interval(values, resample_size, 100))


def test_interval_covers_the_true_mean():
    samples = np.random.default_rng(0).normal(loc=2.0, scale=3.0, size=(200, 100))
    resamples = draw_resamples(100, 20, 50, seed=0).numpy()
    covered = 0
    for sample in samples:
        low, high = interval(sample[resamples].mean(axis=1).tolist(), 50, 100)
        covered += low <= 2.0 <= high
    assert 0.85 <= covered / 200 < 1


def test_p_value_by_hand():
    gains = [0.1, 0.2, 0.2, 0.1]  # mean 0.15, standard deviation sqrt(0.01 / 3)
    t = 0.15 / math.sqrt(0.01 / 3)
    assert improvement_p_value(gains, 50, 100) == pytest.approx(scipy.stats.t.sf(t, df=3))


@pytest.mark.parametrize("gains", [[0.1, -0.2, 0.3, 0.2], [-0.1, -0.3, 0.05, -0.2]])
def test_p_value_is_the_t_test_where_the_factor_is_one_over_the_number_of_gains(gains):
    # 20 of 100 points: the jackknife multiplies the variance by 20 / 80, as the t-test of
    # four independent gains does.
    expected = scipy.stats.ttest_1samp(gains, 0, alternative="greater").pvalue
    assert improvement_p_value(gains, 20, 100) == pytest.approx(expected)


@pytest.mark.parametrize(("gain", "p"), [(0.25, 0.0), (0.0, 1.0), (-0.25, 1.0)])
def test_p_value_of_equal_gains(gain, p):
    assert improvement_p_value([gain] * 4, 50, 100) == p


@pytest.mark.parametrize(
    ("gains", "resample_size", "message"),
    [
        ([], 50, "at least 2 resamples that leave points out, got 0 resamples of 50 of 100"),
        ([0.1], 50, "got 1 resamples of 50 of 100 points"),
        ([0.1, 0.2], 100, "got 2 resamples of 100 of 100 points"),
    ],
)
def test_p_value_errors(gains, resample_size, message):
    with pytest.raises(ValueError, match=message):
        improvement_p_value(gains, resample_size, 100)
