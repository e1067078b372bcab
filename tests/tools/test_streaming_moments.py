"""Moments that come in batches against NumPy's of all rows at once."""

import numpy as np
import pytest

from tools.streaming_moments import Moments


def rows(count=50, values=4, offset=0.0):
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, values)) @ rng.standard_normal((values, values)) + offset


def merged(parts, values=4):
    moments = Moments.of_none(values)
    for part in parts:
        moments = moments.merged(Moments.of(part))
    return moments


@pytest.mark.parametrize("cuts", [[], [1], [7, 8, 30], list(range(1, 50))])
def test_batches_of_any_size_give_the_moments_of_all_rows(cuts):
    data = rows()
    moments = merged(np.split(data, cuts))
    assert moments.count == 50
    np.testing.assert_allclose(moments.mean, data.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(data.T, bias=True), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(moments.std, data.std(axis=0), rtol=1e-10)


def test_merging_needs_no_order():
    first, second, third = (Moments.of(part) for part in np.split(rows(), [10, 11]))
    left, right = first.merged(second).merged(third), third.merged(first.merged(second))
    np.testing.assert_allclose(left.covariance, right.covariance, rtol=1e-12)
    np.testing.assert_allclose(left.mean, right.mean, rtol=1e-12)


def test_a_mean_far_above_the_deviation_costs_no_digits():
    # The sum of squares would be 1e18 a row: float64 has 16 digits, nothing of the variance of about 1 would be left.
    data = rows(offset=1e9)
    moments = merged(np.split(data, 10))
    np.testing.assert_allclose(moments.covariance, np.cov(rows().T, bias=True), rtol=1e-5, atol=1e-5)


def test_small_types_are_summed_in_float64():
    data = np.random.default_rng(1).integers(0, 256, (1000, 2), dtype="uint8")
    moments = Moments.of(data)
    assert moments.mean.dtype == moments.scatter.dtype == "float64"
    np.testing.assert_allclose(moments.std, data.astype("float64").std(axis=0), rtol=1e-12)


def test_nothing_is_the_start_of_a_sum():
    moments = Moments.of(rows())
    for both in (Moments.of_none(4).merged(moments), moments.merged(Moments.of_none(4))):
        assert both.count == 50
        np.testing.assert_array_equal(both.scatter, moments.scatter)
        np.testing.assert_array_equal(both.mean, moments.mean)
    assert Moments.of_none(4).merged(Moments.of_none(4)).count == 0
