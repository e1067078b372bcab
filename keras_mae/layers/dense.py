"""The dense layer of all models here."""

import keras
from keras import ops

from keras_mae.layers.elementwise import add_bias


@keras.saving.register_keras_serializable(package="keras_mae")
class Dense(keras.layers.Dense):
    """A linear map of the last axis, with bias; Xavier-uniform, as Keras' own.

    It multiplies matrices, one row a token, so that TensorFlow adds the bias inside the product. Gradients of biases
    are summed in float32 also under mixed precision: TensorFlow's BiasAddGrad, which Keras' layer leads to, adds up
    bfloat16 in bfloat16 on CPUs, and is off by half after some thousand tokens.

    Args:
        units: width of the output.

    Call arguments:
        x: what is mapped.
        columns: a slice of the outputs, to compute no others; None for all.

    Input shape:
        (batch, ..., dim)

    Output shape:
        (batch, ..., units), or as many as `columns` has
    """

    def __init__(self, units, **kwargs):
        super().__init__(units, **kwargs)

    def call(self, x, columns=None):
        kernel, bias = self.kernel, self.bias
        if columns is not None:
            kernel, bias = kernel[:, columns], bias[columns]
        rows = ops.reshape(x, (-1, x.shape[-1]))  # (B*L, D)
        rows = add_bias(ops.matmul(rows, kernel), bias)  # (B*L, units)
        return ops.reshape(rows, (-1, *x.shape[1:-1], kernel.shape[-1]))

    def get_config(self):
        return {**keras.layers.Layer.get_config(self), "units": self.units}
