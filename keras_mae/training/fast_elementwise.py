"""Biases, GELU, softmax and layer normalisation for training on CPUs, most of them one loop compiled by XLA.

TensorFlow runs them op by op, and its automatic gradients keep and read every intermediate: a third of a ViT-B step.
XLA compiles a whole step well only in float32, where its matrix products are slower than TensorFlow's (oneDNN); it has
none in bfloat16. So matrix products stay TensorFlow's, and what lies between them is compiled: with its gradient
written down, which needs no more than the input (GELU, norm) or the output (softmax).

Everything is computed in float32 at least and given back in the dtype of the input. What is traced with these functions
trains in this process only: a SavedModel that others fine-tune must be traced without them.
"""

import math

import tensorflow as tf


def _compiled(function):
    return tf.function(function, jit_compile=True, autograph=False, reduce_retracing=True)


def _wide(*tensors):
    return [x if x.dtype == tf.float64 else tf.cast(x, tf.float32) for x in tensors]


def add_bias(x, bias):
    """Adds a bias (dim,) to (rows, dim), as a part of the matrix product that made them.

    BiasAdd's own gradient is not used: it adds up bfloat16 in bfloat16.
    """

    @tf.custom_gradient
    def with_gradient(x, bias):
        return tf.nn.bias_add(x, bias), lambda upstream: (upstream, _sum_rows(upstream))

    return with_gradient(x, tf.convert_to_tensor(bias))


def _sum_rows(x):
    # A matrix product with ones: it adds up in float32 whatever the dtype, in half the time of reduce_sum.
    return tf.reshape(tf.matmul(tf.ones((1, tf.shape(x)[0]), x.dtype), x), (x.shape[1],))


def gelu(x):
    """Exact GELU: x Phi(x), where Phi is the normal distribution's."""

    @tf.custom_gradient
    def with_gradient(x):
        return _gelu(x), lambda upstream: _gelu_gradient(x, upstream)

    return with_gradient(x)


@_compiled
def _gelu(x):
    (wide,) = _wide(x)
    return tf.cast(wide * _normal_distribution(wide), x.dtype)


@_compiled
def _gelu_gradient(x, upstream):
    wide, slope = _wide(x, upstream)
    density = tf.exp(-0.5 * tf.square(wide)) * (1 / math.sqrt(2 * math.pi))
    return tf.cast(slope * (_normal_distribution(wide) + wide * density), x.dtype)


def _normal_distribution(x):
    return 0.5 * (1 + tf.math.erf(x * math.sqrt(0.5)))


def softmax(x):
    """Softmax over the last axis. Forwards TensorFlow's own op is the fastest."""

    @tf.custom_gradient
    def with_gradient(x):
        shares = tf.nn.softmax(x)
        return shares, lambda upstream: _softmax_gradient(shares, upstream)

    return with_gradient(x)


@_compiled
def _softmax_gradient(shares, upstream):
    wide, slope = _wide(shares, upstream)
    return tf.cast(wide * (slope - tf.reduce_sum(slope * wide, axis=-1, keepdims=True)), shares.dtype)


def layer_norm(x, gamma, beta, epsilon):
    """Layer normalisation over the last axis.

    Args:
        x: (batch, ..., dim).
        gamma, beta: (dim,) float32.
        epsilon: added to the variance.
    """

    @tf.custom_gradient
    def with_gradient(x, gamma, beta):
        def gradient(upstream):
            of_x, of_gamma, of_beta = _layer_norm_gradient(x, gamma, upstream, epsilon)
            axes = list(range(of_gamma.shape.rank - 1))  # in two stages: XLA is slow at sums of columns
            return of_x, tf.reduce_sum(of_gamma, axis=axes), tf.reduce_sum(of_beta, axis=axes)

        return _layer_norm(x, gamma, beta, epsilon), gradient

    return with_gradient(x, tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta))


@_compiled
def _layer_norm(x, gamma, beta, epsilon):
    normal, _ = _normalized(*_wide(x), epsilon)
    return tf.cast(normal * gamma + beta, x.dtype)


@_compiled
def _layer_norm_gradient(x, gamma, upstream, epsilon):
    wide, slope = _wide(x, upstream)
    normal, scale = _normalized(wide, epsilon)
    scaled = slope * gamma
    mean = tf.reduce_mean(scaled, axis=-1, keepdims=True)
    along = tf.reduce_mean(scaled * normal, axis=-1, keepdims=True)
    of_x = tf.cast(scale * (scaled - mean - normal * along), x.dtype)
    return of_x, tf.reduce_sum(slope * normal, axis=-2), tf.reduce_sum(slope, axis=-2)


def _normalized(x, epsilon):
    mean = tf.reduce_mean(x, axis=-1, keepdims=True)
    scale = tf.math.rsqrt(tf.reduce_mean(tf.square(x - mean), axis=-1, keepdims=True) + epsilon)
    return (x - mean) * scale, scale
