import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mae.layers import elementwise
from keras_mae.layers.dense import Dense
from keras_mae.training import fast_elementwise

TOKENS = np.random.default_rng(0).normal(size=(40, 100, 4)).astype("float32")


def output_and_gradients(layer, implementations=None):
    @tf.function(autograph=False)
    def run(x):
        with elementwise.replaced(implementations), tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            # All of one sign, so that a sum in bfloat16 would stop growing.
            loss = tf.reduce_sum(tf.cast(y, "float32") * (1 + tf.reshape(tf.range(3, dtype=tf.float32), (1, 1, 3))))
        return [y, *tape.gradient(loss, [x, layer.kernel.value, layer.bias.value])]

    return [tf.cast(value, "float32").numpy() for value in run(tf.constant(TOKENS))]


@pytest.mark.parametrize("implementations", [None, fast_elementwise], ids=["plain", "fast"])
@pytest.mark.parametrize(("policy", "epsilon"), [("float32", 1e-6), ("mixed_bfloat16", 2e-2)])
def test_it_is_a_linear_map_of_the_last_axis(implementations, policy, epsilon):
    layer = Dense(3, dtype=policy)
    layer.build(TOKENS.shape)
    layer.bias.assign([1.0, 2.0, 3.0])
    kernel = layer.kernel.numpy()
    upstream = np.broadcast_to(np.array([1.0, 2.0, 3.0]), (40, 100, 3))
    expected = [
        TOKENS @ kernel + [1.0, 2.0, 3.0],
        upstream @ kernel.T,
        np.einsum("bld,blu->du", TOKENS, upstream),
        upstream.sum(axis=(0, 1)),
    ]
    for ours, value in zip(output_and_gradients(layer, implementations), expected, strict=True):
        np.testing.assert_allclose(ours, value, atol=epsilon * np.abs(value).max())


def test_its_weights_begin_as_those_of_keras():
    ours, theirs = Dense(3), keras.layers.Dense(3)
    assert type(ours.kernel_initializer) is type(theirs.kernel_initializer)
    assert ours.use_bias and ours.activation is keras.activations.linear
