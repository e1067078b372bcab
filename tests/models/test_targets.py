import math

import numpy as np

from keras_mae.models.targets import normalized_pixels, pixel_statistics


def test_statistics_are_those_of_the_loop_with_unbiased_variance():
    patches = np.random.uniform(-2, 2, (2, 3, 12)).astype("float32")
    mean, std = pixel_statistics(patches)
    assert mean.shape == std.shape == (2, 3, 1)
    for b in range(2):
        for n in range(3):
            values = [float(v) for v in patches[b, n]]
            expected = sum(values) / 12
            variance = sum((v - expected) ** 2 for v in values) / 11
            assert math.isclose(float(mean[b, n, 0]), expected, abs_tol=1e-6)
            assert math.isclose(float(std[b, n, 0]), math.sqrt(variance + 1e-6), rel_tol=1e-5)


def test_normalized_pixels_by_hand():
    # Mean 2, unbiased variance (1 + 0 + 1) / 2 = 1.
    np.testing.assert_allclose(normalized_pixels(np.array([[[1.0, 2.0, 3.0]]], "float32")), [[[-1, 0, 1]]], atol=1e-6)


def test_flat_patch_gives_zeros():
    np.testing.assert_array_equal(normalized_pixels(np.full((1, 2, 4), 0.5, "float32")), np.zeros((1, 2, 4)))


def test_predicting_the_mean_costs_n_minus_one_over_n():
    target = np.asarray(normalized_pixels(np.random.standard_normal((2, 5, 48)).astype("float32")))
    np.testing.assert_allclose((target**2).mean(axis=-1), 47 / 48, rtol=1e-5)
