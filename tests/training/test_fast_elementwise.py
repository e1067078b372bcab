"""What stands in for plain ops in training on CPUs computes the same, forwards and backwards."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mae.layers import elementwise
from keras_mae.layers.elementwise import LayerNorm
from keras_mae.training import fast_elementwise

X = np.random.default_rng(0).normal(size=(3, 5, 24)).astype("float32") * 3 + 1
UPSTREAM = np.random.default_rng(1).normal(size=X.shape).astype("float32")
EPSILON = {"float32": 2e-6, "bfloat16": 2e-2}


def output_and_gradients(function, x, *weights):
    with tf.GradientTape() as tape:
        tape.watch([x, *weights])
        y = function(x, *weights)
    gradients = tape.gradient(y, [x, *weights], tf.cast(tf.reshape(UPSTREAM, y.shape), y.dtype))
    return [np.asarray(tf.cast(value, "float32")) for value in (y, *gradients)], y.dtype


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("name", ["gelu", "softmax"])
def test_a_function_and_its_gradient_are_the_plain_ones(name, dtype):
    expected, _ = output_and_gradients(getattr(elementwise, name), tf.constant(X))
    ours, out_dtype = output_and_gradients(getattr(fast_elementwise, name), tf.cast(X, dtype))
    assert out_dtype == dtype
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=EPSILON[dtype] * np.abs(b).max())


@pytest.mark.parametrize("shape", [(15, 24), (3, 5, 24), (3, 1, 5, 24)])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_layer_norm_and_its_three_gradients_are_the_plain_ones(shape, policy):
    layer = LayerNorm(dtype=policy)
    layer.build(shape)
    layer.gamma.assign(np.linspace(0.5, 2, 24))
    layer.beta.assign(np.linspace(-1, 1, 24))
    weights = layer.gamma.value, layer.beta.value
    results = []
    for way in (None, fast_elementwise):
        with elementwise.replaced(way):
            x = tf.constant(X.reshape(shape)) if way is None else tf.cast(X.reshape(shape), layer.compute_dtype)
            results.append(output_and_gradients(lambda x, *_: layer(x), x, *weights)[0])
    epsilon = EPSILON[layer.compute_dtype]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=epsilon * max(1, np.abs(b).max()))


def test_float64_stays_float64():
    wide = tf.constant(X, tf.float64)
    assert fast_elementwise.gelu(wide).dtype == fast_elementwise.softmax(wide).dtype == tf.float64
    expected = keras.ops.gelu(wide, approximate=False)
    np.testing.assert_allclose(fast_elementwise.gelu(wide), expected, atol=1e-7)


def test_far_from_zero_nothing_is_lost_or_infinite():
    far = tf.constant([-40.0, -9.0, 9.0, 40.0, 3e4])
    with tf.GradientTape() as tape:
        tape.watch(far)
        y = fast_elementwise.gelu(far)
    np.testing.assert_allclose(y, [0, 0, 9, 40, 3e4], rtol=2e-7, atol=5e-6)
    np.testing.assert_allclose(tape.gradient(y, far), [0, 0, 1, 1, 1], atol=1e-6)


def test_replacements_end_with_their_context():
    class Replacement:
        gelu = staticmethod(lambda x: "replaced")

    with elementwise.replaced(Replacement):
        assert elementwise.gelu(X) == "replaced"
    assert elementwise.gelu(X).shape == X.shape
