"""Vision Transformer (arXiv 2010.11929) with the fixed sin-cos positions of MAE: encoder of every model here."""

import keras
import numpy as np
from keras import ops

from keras_mae.layers.attention import check_heads
from keras_mae.layers.elementwise import LayerNorm
from keras_mae.layers.patches import PatchEmbedding, patchify, unpatchify
from keras_mae.layers.positions import PositionEmbedding
from keras_mae.layers.remat import check_remat, run_blocks
from keras_mae.layers.transformer import TransformerBlock

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

VIT_SIZES = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "patch_size": 14},
}


@keras.saving.register_keras_serializable(package="keras_mae")
class VisionTransformer(keras.Model):
    """Images to tokens: class token first, then one token a patch.

    Normalises the pixels itself, so that it takes the pipeline's uint8 and uint16 batches as they are.

    Args:
        image_size: side in pixels, or (height, width); divisible by `patch_size`.
        patch_size: side of a square patch in pixels.
        channels: channels of the image.
        embed_dim: width of the tokens.
        depth: number of blocks.
        num_heads: attention heads of each block.
        mlp_ratio: hidden width of each MLP over `embed_dim`.
        drop_path_rate: share of dropped residual branches in the last block; grows linearly from 0 in the first.
        pixel_mean: per channel (or one for all), on the scale 0..1 of the images' type (255 or 65535 is 1).
        pixel_std: per channel (or one for all), on the same scale.
        final_norm: whether a LayerNorm follows the blocks. Off under a classifier that pools first and then norms.
        remat: "blocks" computes the inside of each block again in the backward pass instead of keeping it; "none" does
            not. The same numbers, less memory, more time.

    Call arguments:
        images: uint8 (or float on the same scale 0..255), uint16 (0..65535), or the pipeline's dict of features.
        training: whether drop path is active.

    Input shape:
        (batch, height, width, channels)

    Output shape:
        (batch, 1 + num_patches, embed_dim)

    Raises:
        ValueError: sizes that do not divide, or pixel statistics of another number of channels or out of their range.
    """

    def __init__(
        self,
        image_size=224,
        patch_size=16,
        channels=3,
        embed_dim=768,
        depth=12,
        num_heads=12,
        mlp_ratio=4.0,
        drop_path_rate=0.0,
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
        final_norm=True,
        remat="none",
        **kwargs,
    ):
        kwargs.setdefault("name", "encoder")
        # Without autocast the noise that comes with a batch keeps its float32 digits under mixed precision.
        super().__init__(autocast=False, **kwargs)
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.patch_size = patch_size
        self.channels = channels
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.drop_path_rate = drop_path_rate
        self.pixel_mean = _per_channel("pixel_mean", pixel_mean, channels)
        self.pixel_std = _per_channel("pixel_std", pixel_std, channels)
        if not min(self.pixel_std) > 0:
            raise ValueError(f"pixel_std must be above 0, pixels are divided by it. Received: {self.pixel_std}")
        self.final_norm = final_norm
        self.remat = remat
        if min(patch_size, channels, embed_dim) < 1 or depth < 0:
            raise ValueError(
                "patch_size, channels and embed_dim must be at least 1, depth at least 0. Received: "
                f"patch_size={patch_size}, channels={channels}, embed_dim={embed_dim}, depth={depth}"
            )
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be at least 0 and below 1. Received: {drop_path_rate}")
        if any(side <= 0 or side % patch_size for side in self.image_size):
            raise ValueError(
                "Both sides of the image must be positive multiples of the patch size. "
                f"Received: image_size={self.image_size}, patch_size={patch_size}"
            )
        check_heads(embed_dim, num_heads)
        check_remat(remat)
        self.grid_size = tuple(side // patch_size for side in self.image_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

        policy = {"dtype": self.dtype_policy}
        self.patch_embedding = PatchEmbedding(embed_dim, name="patch_embedding", **policy)
        self.position_embedding = PositionEmbedding(
            self.grid_size, embed_dim, trainable=False, name="position_embedding", **policy
        )
        rates = np.linspace(0, drop_path_rate, depth).tolist()
        self.blocks = [
            TransformerBlock(num_heads, mlp_ratio, rate, name=f"block_{i}", **policy) for i, rate in enumerate(rates)
        ]
        self.norm = None
        if final_norm:
            self.norm = LayerNorm(name="norm", **policy)

    def build(self, input_shape=None):
        if self.built:
            return
        tokens = (None, self.num_patches + 1, self.embed_dim)
        self.class_token = self.add_weight(
            name="class_token",
            shape=(1, 1, self.embed_dim),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )
        self.patch_embedding.build((None, self.num_patches, self.patch_size**2 * self.channels))
        self.position_embedding.build()
        for block in self.blocks:
            block.build(tokens)
        if self.norm is not None:
            self.norm.build(tokens)
        self.built = True

    def normalized_images(self, images):
        """Images as normalised float32 pixels; uint16 on the scale 0..65535, all others on 0..255.

        Returns:
            (batch, height, width, channels) float32.
        """
        if tuple(images.shape[1:]) != (*self.image_size, self.channels):
            raise ValueError(
                f"Expected images of shape (batch, {self.image_size[0]}, {self.image_size[1]}, {self.channels}). "
                f"Received: {tuple(images.shape)}"
            )
        pixels = ops.cast(images, "float32") / white_level(images.dtype)
        mean, std = (np.asarray(value, "float32") for value in (self.pixel_mean, self.pixel_std))
        return (pixels - mean) / std

    def normalized_patches(self, images):
        """Cuts images into patches of normalised float32 pixels.

        Returns:
            (batch, num_patches, patch_size * patch_size * channels) float32.
        """
        return patchify(self.normalized_images(images), self.patch_size)

    def denormalized_images(self, patches, dtype="uint8"):
        """The inverse of `normalized_patches`: (batch, height, width, channels), rounded and clipped to `dtype`."""
        white = white_level(dtype)
        pixels = unpatchify(patches, self.image_size, self.patch_size)  # (B, H, W, C)
        mean, std = (np.asarray(value, "float32") for value in (self.pixel_mean, self.pixel_std))
        return ops.cast(ops.clip(ops.round((pixels * std + mean) * white), 0, white), dtype)

    def encode(self, patches, ids=None, drop_noise=None, training=False):
        """Tokens of the given patches.

        Args:
            patches: (batch, num_given, values): all patches, or the visible ones that `ids` names.
            ids: (batch, num_given) int32 numbers of the given patches, None for all.
            drop_noise: (batch, 2 * depth) uniform numbers for drop path, optional.
            training: whether drop path is active.

        Returns:
            (batch, 1 + num_given, embed_dim), class token first.
        """
        return self.encode_embeddings(self.patch_embedding(patches), ids, drop_noise, training)

    def encode_embeddings(self, embeddings, ids=None, drop_noise=None, training=False):
        """As `encode`, from the patches' embeddings (batch, num_given, embed_dim), which know no positions yet."""
        x = self.with_positions(embeddings, ids)  # (B, L+1, D)
        x = run_blocks(self.blocks, x, drop_noise, training, self.remat)  # (B, L+1, D)
        return x if self.norm is None else self.norm(x)

    def with_positions(self, embeddings, ids=None):
        """What enters the first block: embeddings of patches with their positions, behind the class token.

        Args:
            embeddings: (batch, num_given, embed_dim).
            ids: (batch, num_given) int32 numbers of the given patches, None for all.

        Returns:
            (batch, 1 + num_given, embed_dim).
        """
        class_position, positions = self.position_embedding(ids)  # (1, D), (B, L, D)
        x = embeddings + positions  # (B, L, D)
        class_token = ops.cast(self.class_token, x.dtype) + class_position  # (1, 1, D)
        class_token = ops.broadcast_to(class_token, (ops.shape(x)[0], 1, self.embed_dim))  # (B, 1, D)
        return ops.concatenate([class_token, x], axis=1)  # (B, L+1, D)

    def call(self, images, training=False):
        features = images if isinstance(images, dict) else {"image": images}
        patches = self.normalized_patches(features["image"])
        return self.encode(patches, drop_noise=features.get("drop_noise"), training=training)

    def compute_output_shape(self, input_shape):
        shape = input_shape["image"] if isinstance(input_shape, dict) else input_shape
        return (shape[0], self.num_patches + 1, self.embed_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "channels": self.channels,
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "drop_path_rate": self.drop_path_rate,
            "pixel_mean": self.pixel_mean,
            "pixel_std": self.pixel_std,
            "final_norm": self.final_norm,
            "remat": self.remat,
        }


def vit(size, **overrides):
    """A VisionTransformer of one of the usual sizes.

    Args:
        size: "tiny", "small", "base", "large" or "huge" (width/depth/heads: `VIT_SIZES`).
        **overrides: other arguments of `VisionTransformer`, or another value for one of the size's own.

    Raises:
        ValueError: `size` is not one of these.
    """
    if size not in VIT_SIZES:
        raise ValueError(f"Unknown ViT size. Expected one of {sorted(VIT_SIZES)}. Received: {size!r}")
    return VisionTransformer(**{**VIT_SIZES[size], **overrides})


def white_level(dtype):
    """The number that stands for 1 in images of a type: 65535 for uint16, 255 for all others."""
    dtype = keras.backend.standardize_dtype(dtype)
    # Keras gives PyTorch int32 in place of uint16.
    is_wide = dtype == "uint16" or (dtype == "int32" and keras.backend.backend() == "torch")
    return 65535.0 if is_wide else 255.0


def _per_channel(name, value, channels):
    values = tuple(float(v) for v in np.atleast_1d(value))
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite numbers. Received: {values}")
    if len(values) == 1:
        values *= channels
    if len(values) != channels:
        raise ValueError(f"{name} needs 1 or channels={channels} values. Received: {values}")
    return values
