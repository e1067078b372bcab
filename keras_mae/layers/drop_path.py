"""Stochastic depth (arXiv 1603.09382): drops a residual branch for whole samples."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_mae")
class DropPath(keras.layers.Layer):
    """In training, sets the branch to zero for a random share of the samples and scales the others up.

    Args:
        rate: share of the samples whose branch is dropped; 0 <= rate < 1.
        seed: seed of the layer's own draws, used where no noise is given.

    Call arguments:
        x: the residual branch, (batch, ...).
        noise: (batch,) uniform numbers in [0, 1), optional: the branch is dropped where noise < rate. Sent with the
            batch, it makes the draw a function of the sample, whatever the number of replicas.
        training: outside training the layer is the identity.

    Output shape:
        The input's shape.
    """

    def __init__(self, rate, seed=None, **kwargs):
        super().__init__(autocast=False, **kwargs)  # the noise keeps its float32 digits
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be at least 0 and below 1. Received: rate={rate}")
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed) if rate else None

    def call(self, x, noise=None, training=False):
        x = ops.cast(x, self.compute_dtype)
        if not training or self.rate == 0:
            return x
        if noise is None:
            noise = keras.random.uniform((ops.shape(x)[0],), dtype="float32", seed=self.seed_generator)
        keep = ops.cast(noise >= self.rate, x.dtype)  # (B,)
        keep = ops.reshape(keep, (-1,) + (1,) * (len(x.shape) - 1))  # (B, 1, ...)
        return x * keep / (1 - self.rate)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
