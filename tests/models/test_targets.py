import math

import numpy as np
import pytest

from keras_mae.models import PixelTarget
from keras_mae.models.targets import mean_squared_errors, normalized_pixels, pixel_statistics


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


def test_mean_squared_error_of_each_patch_by_hand():
    target = np.array([[[1.0, 2.0], [3.0, 4.0]]], "float32")
    prediction = np.array([[[1.0, 4.0], [0.0, 4.0]]], "float32")
    np.testing.assert_array_equal(mean_squared_errors(prediction, target), [[2.0, 4.5]])


@pytest.mark.parametrize("normalize", [True, False])
def test_pixel_target_turns_its_own_target_back_into_pixels(normalize):
    patches = np.random.standard_normal((2, 3, 12)).astype("float32")
    layer = PixelTarget(12, normalize)
    target = layer(np.zeros((2, 4, 6, 2), "uint8"), patches)
    expected = normalized_pixels(patches) if normalize else patches
    np.testing.assert_array_equal(target, expected)
    np.testing.assert_allclose(layer.to_patches(target, patches), patches, atol=1e-5)
    np.testing.assert_array_equal(layer.patch_losses(target, target), np.zeros((2, 3)))


def test_pixel_target_refuses_patches_of_another_size():
    with pytest.raises(ValueError, match="expects patches of num_values=48 pixels. Received: 12"):
        PixelTarget(48)(np.zeros((1, 4, 6, 2), "uint8"), np.zeros((1, 3, 12), "float32"))


def test_pixels_keep_their_float32_digits_under_mixed_precision():
    patches = np.array([[[1.0001, 1.0002, 1.0003]]], "float32")
    target = PixelTarget(3, normalize=False, dtype="mixed_bfloat16")(np.zeros((1, 1, 3, 1), "uint8"), patches)
    np.testing.assert_array_equal(target, patches)
