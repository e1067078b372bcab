"""Attention and block against NumPy loops that take one sample, one head, one token at a time."""

import math

import numpy as np
import pytest
from keras import ops

from keras_mae.layers import SelfAttention, TransformerBlock


def attention_in_loops(x, qkv_kernel, qkv_bias, kernel, bias, num_heads):
    batch, tokens, dim = x.shape
    head_dim = dim // num_heads
    heads = np.zeros_like(x)
    for b in range(batch):
        qkv = x[b] @ qkv_kernel + qkv_bias
        for k in range(num_heads):
            q, key, v = (qkv[:, part * dim + k * head_dim :][:, :head_dim] for part in range(3))
            for i in range(tokens):
                weights = np.exp([q[i] @ key[j] / math.sqrt(head_dim) for j in range(tokens)])
                heads[b, i, k * head_dim : (k + 1) * head_dim] = weights / weights.sum() @ v
    return heads @ kernel + bias


def layer_norm(x, gamma, beta):
    variance = x.var(axis=-1, keepdims=True)  # biased, as everywhere in LayerNorm
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + 1e-6) * gamma + beta


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def randomize(layer):
    """Random biases and scales too: nothing is left at 0 or 1, where errors hide."""
    for weight in layer.weights:
        weight.assign(np.random.normal(0, 0.5, weight.shape) + (weight.name == "gamma"))


def weights_of(layer):
    return [ops.convert_to_numpy(w).astype("float64") for w in layer.weights]


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_attention_is_that_of_the_loop(num_heads):
    x = np.random.standard_normal((2, 5, 8))
    layer = SelfAttention(num_heads)
    layer.build(x.shape)
    randomize(layer)
    np.testing.assert_allclose(layer(x), attention_in_loops(x, *weights_of(layer), num_heads), atol=2e-5)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width=10, num_heads=4"):
        SelfAttention(4).build((None, 5, 10))


def build_block(**kwargs):
    block = TransformerBlock(2, mlp_ratio=3.0, **kwargs)
    block.build((None, 5, 8))
    randomize(block)
    return block


def branches_in_loops(block, x, attention=True, mlp=True):
    norm1, attention_weights, norm2 = weights_of(block)[:2], weights_of(block)[2:6], weights_of(block)[6:8]
    hidden_kernel, hidden_bias, output_kernel, output_bias = weights_of(block)[8:]
    if attention:
        x = x + attention_in_loops(layer_norm(x, *norm1), *attention_weights, num_heads=2)
    if mlp:
        x = x + gelu(layer_norm(x, *norm2) @ hidden_kernel + hidden_bias) @ output_kernel + output_bias
    return x


def test_block_is_that_of_the_loop():
    x, block = np.random.standard_normal((2, 5, 8)), build_block()
    assert block.mlp_hidden.units == 24
    np.testing.assert_allclose(block(x), branches_in_loops(block, x), atol=2e-5)


def test_block_norms_with_the_small_epsilon():
    # Values of size 1e-3, variance 1e-6: Keras' default epsilon, 1e-3, would flatten them.
    x, block = 1e-3 * np.random.standard_normal((2, 5, 8)), build_block()
    np.testing.assert_allclose(block(x), branches_in_loops(block, x), atol=2e-5)


@pytest.mark.parametrize("attention, mlp", [(True, False), (False, True), (False, False)])
def test_drop_noise_has_one_column_for_attention_and_one_for_the_mlp(attention, mlp):
    x, block = np.random.standard_normal((2, 5, 8)), build_block(drop_path_rate=1e-6)  # scales by 1 + 1e-6
    noise = np.tile(np.array([attention, mlp], "float32"), (2, 1))
    expected = branches_in_loops(block, x, attention, mlp)
    np.testing.assert_allclose(block(x, drop_noise=noise, training=True), expected, atol=5e-5)


def test_branches_draw_separately():
    block = build_block(drop_path_rate=0.5)
    x = np.repeat(np.random.standard_normal((1, 5, 8)), 64, axis=0)
    y = ops.convert_to_numpy(block(x, training=True))
    assert len(np.unique(np.round(y[:, 0, 0], 4))) == 4  # neither, attention, MLP, both


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_the_last_tokens_alone_are_those_of_all(num_outputs):
    block = TransformerBlock(2, drop_path_rate=0.5)
    x = np.random.normal(size=(3, 5, 8)).astype("float32")
    noise = np.random.default_rng(0).uniform(size=(3, 2)).astype("float32")
    block.build(x.shape)
    randomize(block)
    everything = block(x, drop_noise=noise, training=True)
    last = block(x, drop_noise=noise, training=True, num_outputs=num_outputs)
    np.testing.assert_allclose(last, everything[:, -num_outputs:], rtol=1e-5, atol=1e-6)
