"""The token target (Table 1d, "dVAE token"): the decoder names the code that a discrete VAE gives each patch."""

import math

import keras
import numpy as np
from keras import ops

from keras_mae.models.discrete_vae import DiscreteVAE
from keras_mae.models.token_networks import DOWNSAMPLING, TokenEncoder
from keras_mae.models.vit import white_level


def resize_matrix(size, new_size):
    """Weights of linear interpolation along one axis, antialiased: (new_size, size) float32, rows summing to 1.

    When shrinking, the triangle of weights is as much wider as the axis becomes shorter (Pillow's BILINEAR, and
    `tf.image.resize` with antialias=True). A matrix and not `ops.image.resize`, because XLA does not compile that
    one with antialiasing.
    """
    step = size / new_size
    centers = (np.arange(new_size)[:, None] + 0.5) * step - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(size)[None] - centers) / max(step, 1))
    return (weights / weights.sum(axis=1, keepdims=True)).astype("float32")


def resize_images(images, image_size):
    """Bilinear and antialiased, in float32: (batch, *image_size, channels) on the scale of `images`."""
    rows, columns = (resize_matrix(*sizes) for sizes in zip(images.shape[1:3], image_size, strict=True))
    x = ops.einsum("hH,BHWC->BhWC", rows, ops.cast(images, "float32"))  # (B, h, W, C)
    return ops.einsum("wW,BhWC->BhwC", columns, x)  # (B, h, w, C)


@keras.saving.register_keras_serializable(package="keras_mae")
class TokenTarget(keras.layers.Layer):
    """The likeliest code of each patch, as a fixed tokenizer sees it.

    The tokenizer makes a code of 8 x 8 pixels. So the image is resized to 8 pixels a patch each way (224 pixels with
    patches of 16: to 112 x 112, 14 x 14 codes), and one code falls on each patch. The tokenizer maps the pixels to
    its own scale, (1 - 2 eps) x + eps with eps = .1, where x is 1 for white: 255, of uint16 images 65535. It is never
    trained: no gradient passes the choice of a code.

    Args:
        tokenizer: a `DiscreteVAE`, of which the encoder is kept, or a `TokenEncoder`. Computes in its own precision.

    Attributes:
        num_values: numbers that the decoder predicts for each patch: a score for every code.

    Call arguments:
        images: uint8 (or floats on the same scale 0..255), or uint16 (0..65535).
        patches: as `VisionTransformer.normalized_patches` makes them; only their shape is read.

    Input shape:
        (batch, height, width, channels) and (batch, num_patches, patch_size * patch_size * channels)

    Output shape:
        (batch, num_patches) int32
    """

    def __init__(self, tokenizer, **kwargs):
        super().__init__(autocast=False, **kwargs)
        if not isinstance(tokenizer, DiscreteVAE | TokenEncoder):
            raise ValueError(f"A tokenizer is a DiscreteVAE or a TokenEncoder. Received: {type(tokenizer).__name__}")
        self.tokenizer = tokenizer.encoder if isinstance(tokenizer, DiscreteVAE) else tokenizer
        self.tokenizer.trainable = False
        self.num_values = self.tokenizer.num_codes

    def build(self, images_shape=None, patches_shape=None):
        self.tokenizer.build()

    def call(self, images, patches):
        height, width, channels = images.shape[1:]
        patch_size = math.isqrt(patches.shape[-1] // channels)
        rows, columns = height // patch_size, width // patch_size
        small = resize_images(images, (rows * DOWNSAMPLING, columns * DOWNSAMPLING))  # (B, 8 h, 8 w, C)
        codes = self.tokenizer.codes(small * (255 / white_level(images.dtype)))  # (B, h, w)
        return ops.reshape(codes, (-1, rows * columns))  # (B, N)

    def patch_losses(self, prediction, target):
        """Cross-entropy between the predicted scores and the codes.

        Args:
            prediction: (batch, num_patches, num_values) logits.
            target: (batch, num_patches) int32, of `call`.

        Returns:
            (batch, num_patches) float32, in nats.
        """
        prediction = ops.cast(prediction, "float32")
        return ops.sparse_categorical_crossentropy(target, prediction, from_logits=True)

    def compute_output_shape(self, images_shape, patches_shape):
        return tuple(patches_shape[:2])

    def get_config(self):
        return {**super().get_config(), "tokenizer": keras.saving.serialize_keras_object(self.tokenizer)}

    @classmethod
    def from_config(cls, config):
        tokenizer = keras.saving.deserialize_keras_object(config["tokenizer"])
        return cls(**{**config, "tokenizer": tokenizer})
