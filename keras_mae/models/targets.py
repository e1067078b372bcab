"""What the decoder predicts for a removed patch (Section 3, "Reconstruction target"; Table 1d).

A target is a Keras layer that is never trained, with

- `num_values`: how many numbers the decoder predicts for a patch;
- `call(images, patches)`: what it should predict. Images are uint8 (batch, height, width, channels), patches their
  normalised pixels (batch, num_patches, values) float32;
- `patch_losses(prediction, target)`: the loss of each patch, (batch, num_patches) float32;
- where a prediction can be shown, `to_patches(prediction, patches)`: the normalised pixels that it stands for,
  (batch, num_patches, values) float32. A target may take from the true `patches` what it does not predict.

Here are the pixels themselves; `pca_target` and `token_target` have the paper's other targets.
"""

import keras
from keras import ops

EPSILON = 1e-6


def pixel_statistics(patches):
    """Mean and standard deviation over the values of each patch.

    The variance is unbiased (divides by n - 1), as the reference's is.

    Args:
        patches: (batch, num_patches, values) float32.

    Returns:
        mean and sqrt(variance + 1e-6), each (batch, num_patches, 1).
    """
    values = patches.shape[-1]
    mean = ops.mean(patches, axis=-1, keepdims=True)  # (B, N, 1)
    variance = ops.sum(ops.square(patches - mean), axis=-1, keepdims=True) / (values - 1)  # (B, N, 1)
    return mean, ops.sqrt(variance + EPSILON)


def normalized_pixels(patches):
    """The paper's better target: pixels normalised by the mean and deviation of their own patch."""
    mean, std = pixel_statistics(patches)
    return (patches - mean) / std  # (B, N, P*P*C)


def mean_squared_errors(prediction, target):
    """The mean of squares over the values of each patch: (batch, num_patches)."""
    return ops.mean(ops.square(prediction - target), axis=-1)


@keras.saving.register_keras_serializable(package="keras_mae")
class PixelTarget(keras.layers.Layer):
    """The pixels of the patch: the paper's default, with mean squared error.

    Args:
        num_values: pixels of a patch, patch_size * patch_size * channels.
        normalize: whether they are normalised by the mean and deviation of their own patch.

    Call arguments:
        images: not used.
        patches: normalised pixels.

    Input shape:
        (batch, height, width, channels) and (batch, num_patches, num_values)

    Output shape:
        (batch, num_patches, num_values)
    """

    def __init__(self, num_values, normalize=True, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.num_values = num_values
        self.normalize = normalize

    def call(self, images, patches):
        if patches.shape[-1] != self.num_values:
            raise ValueError(
                f"PixelTarget expects patches of num_values={self.num_values} pixels. Received: {patches.shape[-1]}"
            )
        return normalized_pixels(patches) if self.normalize else patches

    def patch_losses(self, prediction, target):
        return mean_squared_errors(prediction, target)

    def to_patches(self, prediction, patches):
        """The predicted pixels; where they are normalised, with the true patch's own mean and deviation put back."""
        if not self.normalize:
            return prediction
        mean, std = pixel_statistics(patches)
        return prediction * std + mean

    def get_config(self):
        return {**super().get_config(), "num_values": self.num_values, "normalize": self.normalize}
