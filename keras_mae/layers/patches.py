"""Images as sequences of patches, and the linear embedding of them (Section 3, "MAE encoder")."""

import math

import keras
from keras import ops


def patchify(images, patch_size):
    """Cuts images into patches: row-major over the image, each flattened in the order (row, column, channel).

    Args:
        images: (batch, height, width, channels); height and width divisible by `patch_size`.
        patch_size: side of a square patch in pixels.

    Returns:
        (batch, num_patches, patch_size * patch_size * channels), of the dtype of `images`.
    """
    _, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = ops.reshape(images, (-1, rows, patch_size, columns, patch_size, channels))  # (B, rows, P, cols, P, C)
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))  # (B, rows, cols, P, P, C)
    return ops.reshape(x, (-1, rows * columns, patch_size * patch_size * channels))  # (B, N, P*P*C)


def unpatchify(patches, image_size, patch_size):
    """Puts patches back together: the inverse of `patchify`.

    Args:
        patches: (batch, num_patches, patch_size * patch_size * channels).
        image_size: (height, width) in pixels.
        patch_size: side of a square patch in pixels.

    Returns:
        (batch, height, width, channels).
    """
    height, width = image_size
    rows, columns = height // patch_size, width // patch_size
    channels = patches.shape[-1] // (patch_size * patch_size)
    x = ops.reshape(patches, (-1, rows, columns, patch_size, patch_size, channels))  # (B, rows, cols, P, P, C)
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))  # (B, rows, P, cols, P, C)
    return ops.reshape(x, (-1, height, width, channels))  # (B, H, W, C)


@keras.saving.register_keras_serializable(package="keras_mae")
class PatchEmbedding(keras.layers.Layer):
    """Linear embedding of flattened patches.

    The same map as a convolution with kernel and stride `patch_size`, applied to any subset of the patches: the
    encoder embeds the visible ones only. Initialised as the reference: Xavier-uniform on the weight seen as a
    matrix (not on the convolution kernel, whose bound would be ten times smaller), bias U(+-1/sqrt(fan_in)).

    Args:
        embed_dim: width of the tokens.

    Call arguments:
        patches: as `patchify` makes them.

    Input shape:
        (batch, num_patches, patch_size * patch_size * channels)

    Output shape:
        (batch, num_patches, embed_dim)
    """

    def __init__(self, embed_dim, **kwargs):
        super().__init__(**kwargs)
        self.embed_dim = embed_dim

    def build(self, input_shape):
        fan_in = input_shape[-1]
        bound = 1 / math.sqrt(fan_in)
        self.kernel = self.add_weight(name="kernel", shape=(fan_in, self.embed_dim), initializer="glorot_uniform")
        self.bias = self.add_weight(
            name="bias",
            shape=(self.embed_dim,),
            initializer=keras.initializers.RandomUniform(-bound, bound),
        )

    def call(self, patches):
        return ops.matmul(patches, self.kernel) + self.bias  # (B, N, D)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.embed_dim)

    def get_config(self):
        return {**super().get_config(), "embed_dim": self.embed_dim}
