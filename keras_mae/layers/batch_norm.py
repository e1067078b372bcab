"""Batch normalisation of feature vectors without scale and offset, as the linear probe has it (appendix A.1)."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_mae")
class BatchNorm(keras.layers.Layer):
    """Brings each feature to mean 0 and variance 1: of the batch in training, else of moving averages.

    It is `torch.nn.BatchNorm1d(affine=False)`; unlike Keras' own layer it averages the unbiased variance, and so gives
    the reference's numbers in evaluation, too. Not synchronised: each replica norms by its own part of the batch. The
    moving averages are the mean over all replicas. Computed in float32, which is what comes out.

    Args:
        momentum: share of a moving average that a batch leaves.
        epsilon: added to the variance.

    Call arguments:
        x: feature vectors.
        training: whether the batch's own statistics are taken, and averaged.

    Input shape:
        (batch, dim)

    Output shape:
        The input's shape, float32.
    """

    def __init__(self, momentum=0.9, epsilon=1e-6, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape):
        def average(name, initializer):
            return self.add_weight(
                name=name,
                shape=(input_shape[-1],),
                initializer=initializer,
                trainable=False,
                dtype="float32",
                autocast=False,
                aggregation="mean",  # over replicas
            )

        self.moving_mean = average("moving_mean", "zeros")
        self.moving_variance = average("moving_variance", "ones")

    def call(self, x, training=False):
        x = ops.cast(x, "float32")
        if not training:
            return (x - self.moving_mean) * ops.rsqrt(self.moving_variance + self.epsilon)
        mean, variance = ops.mean(x, axis=0), ops.var(x, axis=0)  # (D,), (D,)
        count = ops.cast(ops.shape(x)[0], "float32")
        self._move(self.moving_mean, mean)
        self._move(self.moving_variance, variance * count / ops.maximum(count - 1, 1.0))
        return (x - mean) * ops.rsqrt(variance + self.epsilon)

    def _move(self, average, value):
        average.assign(self.momentum * average + (1 - self.momentum) * value)

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_output_spec(self, x, training=False):
        return keras.KerasTensor(x.shape, dtype="float32")

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum, "epsilon": self.epsilon}
