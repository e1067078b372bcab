import numpy as np
import pytest
from keras import ops

from keras_mae.layers import DropPath


def test_outside_training_it_is_the_identity():
    x = np.random.standard_normal((4, 3)).astype("float32")
    np.testing.assert_array_equal(DropPath(0.5)(x), x)
    np.testing.assert_array_equal(DropPath(0.5)(x, noise=np.zeros(4, "float32"), training=False), x)


def test_rate_zero_is_the_identity():
    x = np.random.standard_normal((4, 3)).astype("float32")
    np.testing.assert_array_equal(DropPath(0.0)(x, noise=np.zeros(4, "float32"), training=True), x)


def test_branch_is_dropped_for_whole_samples_at_the_rate_and_scaled_up():
    y = ops.convert_to_numpy(DropPath(0.25, seed=1)(np.ones((4000, 2, 3), "float32"), training=True))
    kept = y[:, 0, 0] > 0
    np.testing.assert_allclose(y, np.where(kept[:, None, None], 1 / 0.75, 0) * np.ones_like(y), rtol=1e-6)
    assert abs(np.mean(~kept) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)  # 4 standard errors


def test_draws_differ_between_calls_and_repeat_with_the_seed():
    x, first, same = np.ones((64, 1), "float32"), DropPath(0.5, seed=1), DropPath(0.5, seed=1)
    a, b, c = (ops.convert_to_numpy(layer(x, training=True)) for layer in (first, same, first))
    np.testing.assert_array_equal(a, b)
    assert np.any(a != c)


def test_given_noise_decides_below_the_rate_drops():
    noise = np.array([0.0, 0.24, 0.25, 0.99], "float32")
    y = DropPath(0.25)(np.ones((4, 2), "float32"), noise=noise, training=True)
    np.testing.assert_allclose(y, np.repeat([[0], [0], [1 / 0.75], [1 / 0.75]], 2, axis=1), rtol=1e-6)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rate_outside_its_range_is_an_error(rate):
    with pytest.raises(ValueError, match=f"Received: rate={rate}"):
        DropPath(rate)
