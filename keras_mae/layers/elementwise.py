"""What a Transformer does between its matrix products: biases, GELU, softmax, layer normalisation.

Plain ops, on every backend. Where they are slow one by one (on CPUs they take as long as half of the matrix products),
a trainer puts implementations of its own in their place while it traces a step: see `training.fast_elementwise`.
"""

import contextlib
import contextvars

import keras
from keras import ops

_in_place = contextvars.ContextVar("in_place", default=None)


@contextlib.contextmanager
def replaced(implementations):
    """Within this context, functions of this module do as `implementations` does.

    Args:
        implementations: an object with `add_bias(x, bias)`, `gelu(x)`, `softmax(x)` and
            `layer_norm(x, gamma, beta, epsilon)`.
    """
    token = _in_place.set(implementations)
    try:
        yield
    finally:
        _in_place.reset(token)


def add_bias(x, bias):
    """Adds a bias (dim,) to (rows, dim)."""
    fast = _in_place.get()
    return x + bias if fast is None else fast.add_bias(x, bias)


def gelu(x):
    """Exact (erf) GELU."""
    fast = _in_place.get()
    return ops.gelu(x, approximate=False) if fast is None else fast.gelu(x)


def softmax(x):
    """Softmax over the last axis."""
    fast = _in_place.get()
    return ops.softmax(x) if fast is None else fast.softmax(x)


@keras.saving.register_keras_serializable(package="keras_mae")
class LayerNorm(keras.layers.LayerNormalization):
    """Layer normalisation over the last axis, with the reference's epsilon (Keras' default is 1e-3).

    Computed in float32 with float32 weights, also under mixed precision.

    Call arguments:
        x: tokens.

    Input shape:
        (batch, ..., dim)

    Output shape:
        The input's shape.
    """

    def __init__(self, epsilon=1e-6, **kwargs):
        super().__init__(epsilon=epsilon, autocast=False, **kwargs)

    def call(self, x):
        x, fast = ops.cast(x, self.compute_dtype), _in_place.get()
        if fast is None:
            return super().call(x)
        return fast.layer_norm(x, self.gamma.value, self.beta.value, self.epsilon)

    def get_config(self):
        return {**keras.layers.Layer.get_config(self), "epsilon": self.epsilon}
