"""Encoder and decoder of a discrete VAE, in the layout of DALL-E's (arXiv 2102.12092, Appendix A), so that published
weights can be converted (tools.convert_tokenizer): convolutional, four groups of residual blocks each."""

import keras
from keras import ops

NUM_GROUPS = 4
DOWNSAMPLING = 2 ** (NUM_GROUPS - 1)  # pixels to a code, each way: a pooling between any two groups
PIXEL_MARGIN = 0.1


def squeezed_pixels(images):
    """DALL-E's pixel mapping: x in 0..1 becomes (1 - 2 eps) x + eps with eps = .1, away from the logit's poles.

    Args:
        images: uint8, or floats on the same scale 0..255.

    Returns:
        The same shape, float32 from .1 to .9.
    """
    return (1 - 2 * PIXEL_MARGIN) * ops.cast(images, "float32") / 255.0 + PIXEL_MARGIN


def convolution(dim, kernel_size, name, dtype):
    """A convolution of stride 1 that keeps the size, initialised as DALL-E's: N(0, 1 / fan_in)."""
    return keras.layers.Conv2D(
        dim,
        kernel_size,
        padding="same",
        data_format="channels_last",
        kernel_initializer=keras.initializers.VarianceScaling(1.0, "fan_in", "untruncated_normal"),
        name=name,
        dtype=dtype,
    )


@keras.saving.register_keras_serializable(package="keras_mae")
class ResidualBlock(keras.layers.Layer):
    """Four convolutions through a bottleneck of a quarter of the width, beside a shortcut.

    Args:
        dim: channels of the output, a multiple of 4.
        kernel_sizes: of the four convolutions, in pixels: 3, 3, 3, 1 in the encoder, 1, 3, 3, 3 in the decoder.
        gain: factor on the convolutions' branch; 1 / (number of all blocks)^2, which keeps deep stacks calm at first.
        project_shortcut: whether the shortcut is a convolution of 1 x 1, as it must be where the width changes.

    Input shape:
        (batch, height, width, channels)

    Output shape:
        (batch, height, width, dim)
    """

    def __init__(self, dim, kernel_sizes, gain, project_shortcut=False, **kwargs):
        super().__init__(**kwargs)
        if dim < 4 or dim % 4:
            raise ValueError(f"The width of a residual block must be a multiple of 4. Received: dim={dim}")
        self.dim = dim
        self.kernel_sizes = tuple(kernel_sizes)
        self.gain = gain
        self.project_shortcut = project_shortcut
        self.shortcut = convolution(dim, 1, "shortcut", self.dtype_policy) if project_shortcut else None
        dims = (dim // 4, dim // 4, dim // 4, dim)
        self.convolutions = [
            convolution(dims[i], size, f"conv_{i + 1}", self.dtype_policy) for i, size in enumerate(self.kernel_sizes)
        ]

    def build(self, input_shape):
        if self.shortcut is not None:
            self.shortcut.build(input_shape)
        for layer in self.convolutions:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def call(self, x):
        residual = x
        for layer in self.convolutions:
            residual = layer(ops.relu(residual))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return shortcut + self.gain * residual

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.dim)

    def get_config(self):
        return {
            **super().get_config(),
            "dim": self.dim,
            "kernel_sizes": self.kernel_sizes,
            "gain": self.gain,
            "project_shortcut": self.project_shortcut,
        }


def residual_groups(input_dim, dims, blocks_per_group, kernel_sizes, dtype):
    """Lists of blocks, one list a group, of these widths; `input_dim` channels enter the first."""
    gain = 1 / (len(dims) * blocks_per_group) ** 2
    groups = []
    for number, dim in enumerate(dims, 1):
        names = [f"group_{number}_block_{i + 1}" for i in range(blocks_per_group)]
        changes = [dim != input_dim] + [False] * (blocks_per_group - 1)
        groups.append(
            [
                ResidualBlock(dim, kernel_sizes, gain, change, name=name, dtype=dtype)
                for name, change in zip(names, changes, strict=True)
            ]
        )
        input_dim = dim
    return groups


def halved(x):
    """Max-pooling of 2 x 2 pixels; by hand, as XLA refuses the gradient of `ops.max_pool` under deterministic ops."""
    _, height, width, dim = x.shape
    return ops.max(ops.reshape(x, (-1, height // 2, 2, width // 2, 2, dim)), axis=(2, 4))


def build_chain(layers, dim):
    """Builds layers that follow each other on pictures of any size; `dim` channels enter."""
    shape = (None, None, None, dim)
    for layer in layers:
        layer.build(shape)
        shape = layer.compute_output_shape(shape)


@keras.saving.register_keras_serializable(package="keras_mae")
class TokenEncoder(keras.Model):
    """Images to a score for every code at every place; the half of a discrete VAE that makes tokens.

    Args:
        channels: of the images.
        num_codes: size of the vocabulary.
        hidden_dim: width of the first group; the others have 2, 4 and 8 times as much.
        blocks_per_group: residual blocks in each of the four groups.

    Call arguments:
        images: uint8, or floats on the same scale 0..255; height and width divisible by 8.

    Input shape:
        (batch, height, width, channels)

    Output shape:
        (batch, height / 8, width / 8, num_codes) float32
    """

    def __init__(self, channels=3, num_codes=8192, hidden_dim=256, blocks_per_group=2, **kwargs):
        kwargs.setdefault("name", "token_encoder")
        super().__init__(autocast=False, **kwargs)
        self.channels = channels
        self.num_codes = num_codes
        self.hidden_dim = hidden_dim
        self.blocks_per_group = blocks_per_group
        dims = [hidden_dim * 2**group for group in range(NUM_GROUPS)]
        self.stem = convolution(hidden_dim, 7, "input", self.dtype_policy)
        self.groups = residual_groups(hidden_dim, dims, blocks_per_group, (3, 3, 3, 1), self.dtype_policy)
        self.code_scores = convolution(num_codes, 1, "output", "float32")  # as published, whatever the precision

    def build(self, input_shape=None):
        if not self.built:
            build_chain([self.stem, *sum(self.groups, []), self.code_scores], self.channels)
            self.built = True

    def call(self, images):
        height, width, channels = images.shape[1:]
        if channels != self.channels or height % DOWNSAMPLING or width % DOWNSAMPLING:
            raise ValueError(
                f"Expected images of {self.channels} channel(s), height and width divisible by {DOWNSAMPLING}. "
                f"Received: (batch, {height}, {width}, {channels})"
            )
        x = self.stem(squeezed_pixels(images))  # (B, H, W, D)
        for number, group in enumerate(self.groups):
            if number > 0:
                x = halved(x)
            for block in group:
                x = block(x)
        return self.code_scores(ops.relu(x))  # (B, H/8, W/8, num_codes)

    def codes(self, images):
        """The likeliest code at every place: (batch, height / 8, width / 8) int32."""
        return ops.cast(ops.argmax(self(images), axis=-1), "int32")

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *(side // DOWNSAMPLING for side in input_shape[1:3]), self.num_codes)

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "num_codes": self.num_codes,
            "hidden_dim": self.hidden_dim,
            "blocks_per_group": self.blocks_per_group,
        }


@keras.saving.register_keras_serializable(package="keras_mae")
class TokenDecoder(keras.layers.Layer):
    """Codes to images: parameters of the pixels' logit-Laplace distribution.

    Args:
        channels: of the images.
        hidden_dim: width of the last group; those before it have 8, 4 and 2 times as much.
        blocks_per_group: residual blocks in each of the four groups.
        code_dim: width of a code's embedding.

    Input shape:
        (batch, rows, columns, num_codes): a distribution over the codes, or one-hot

    Output shape:
        (batch, 8 * rows, 8 * columns, 2 * channels) float32: means, then log-scales, of the pixels' logits
    """

    def __init__(self, channels=3, hidden_dim=256, blocks_per_group=2, code_dim=128, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.channels = channels
        self.hidden_dim = hidden_dim
        self.blocks_per_group = blocks_per_group
        self.code_dim = code_dim
        dims = [hidden_dim * 2**group for group in reversed(range(NUM_GROUPS))]
        self.code_embedding = convolution(code_dim, 1, "input", "float32")  # as published, whatever the precision
        self.groups = residual_groups(code_dim, dims, blocks_per_group, (1, 3, 3, 3), self.dtype_policy)
        self.pixel_distribution = convolution(2 * channels, 1, "output", self.dtype_policy)

    def build(self, input_shape):
        build_chain([self.code_embedding, *sum(self.groups, []), self.pixel_distribution], input_shape[-1])

    def call(self, codes):
        x = self.code_embedding(codes)  # (B, h, w, code_dim)
        for number, group in enumerate(self.groups):
            if number > 0:
                x = ops.repeat(ops.repeat(x, 2, axis=1), 2, axis=2)
            for block in group:
                x = block(x)
        return ops.cast(self.pixel_distribution(ops.relu(x)), "float32")  # (B, H, W, 2C)

    def compute_output_shape(self, input_shape):
        sides = (side and DOWNSAMPLING * side for side in input_shape[1:3])
        return (input_shape[0], *sides, 2 * self.channels)

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "hidden_dim": self.hidden_dim,
            "blocks_per_group": self.blocks_per_group,
            "code_dim": self.code_dim,
        }
