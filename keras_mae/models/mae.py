"""The masked autoencoder (arXiv 2111.06377, Figure 1): encode the visible patches, rebuild the removed ones.

Where it differs from the reference on purpose: removed patches are dropped before the patch embedding instead of
after it. The embedding is linear in each patch alone, so the result is the same and three quarters of it are saved.
"""

import keras
from keras import ops

from keras_mae.layers.attention import check_heads
from keras_mae.layers.masking import RandomMasking, gather_tokens, num_visible
from keras_mae.layers.positions import PositionEmbedding
from keras_mae.layers.transformer import LAYER_NORM_EPSILON, TransformerBlock
from keras_mae.models.targets import normalized_pixels, pixel_statistics
from keras_mae.models.weighted_mean import weighted_mean


@keras.saving.register_keras_serializable(package="keras_mae")
class Decoder(keras.layers.Layer):
    """Light Transformer over visible tokens and mask tokens; used in pre-training only.

    Args:
        grid_size: (rows, columns) of the patch grid.
        patch_values: numbers to predict for each patch (patch_size * patch_size * channels).
        embed_dim: width of the decoder's tokens.
        depth: number of blocks.
        num_heads: attention heads of each block.

    Call arguments:
        latent: encoder's tokens, class token first.
        ids_restore: where each patch stands in the sequence [visible, removed].

    Input shape:
        (batch, 1 + num_visible, encoder width) and (batch, num_patches)

    Output shape:
        (batch, num_patches, patch_values)
    """

    def __init__(self, grid_size, patch_values, embed_dim=512, depth=8, num_heads=16, **kwargs):
        super().__init__(**kwargs)
        self.grid_size = tuple(grid_size)
        self.patch_values = patch_values
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        check_heads(embed_dim, num_heads)
        policy = {"dtype": self.dtype_policy}
        self.embedding = keras.layers.Dense(embed_dim, name="embedding", **policy)
        self.position_embedding = PositionEmbedding(
            self.grid_size, embed_dim, trainable=False, name="position_embedding", **policy
        )
        self.blocks = [TransformerBlock(num_heads, name=f"block_{i}", **policy) for i in range(depth)]
        self.norm = keras.layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, name="norm", **policy)
        self.prediction = keras.layers.Dense(patch_values, name="prediction", **policy)

    def build(self, latent_shape, ids_restore_shape=None):
        tokens = (None, self.num_patches + 1, self.embed_dim)
        self.mask_token = self.add_weight(
            name="mask_token",
            shape=(1, 1, self.embed_dim),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )
        self.embedding.build(latent_shape)
        self.position_embedding.build()
        for block in self.blocks:
            block.build(tokens)
        self.norm.build(tokens)
        self.prediction.build(tokens)

    def call(self, latent, ids_restore, training=False):
        x = self.embedding(latent)  # (B, L+1, D)
        batch, num_removed = ops.shape(x)[0], self.num_patches + 1 - x.shape[1]
        mask_tokens = ops.cast(self.mask_token, x.dtype)
        mask_tokens = ops.broadcast_to(mask_tokens, (batch, num_removed, self.embed_dim))  # (B, N-L, D)
        class_position, positions = self.position_embedding()  # (1, D), (N, D)
        patches = ops.concatenate([x[:, 1:], mask_tokens], axis=1)  # (B, N, D)
        patches = gather_tokens(patches, ids_restore) + positions  # (B, N, D)
        x = ops.concatenate([x[:, :1] + class_position, patches], axis=1)  # (B, N+1, D)
        for block in self.blocks:
            x = block(x, training=training)
        return self.prediction(self.norm(x))[:, 1:]  # (B, N, P*P*C)

    def compute_output_shape(self, latent_shape, ids_restore_shape=None):
        return (latent_shape[0], self.num_patches, self.patch_values)

    def get_config(self):
        return {
            **super().get_config(),
            "grid_size": self.grid_size,
            "patch_values": self.patch_values,
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_heads": self.num_heads,
        }


@keras.saving.register_keras_serializable(package="keras_mae")
class MaskedAutoencoder(keras.Model):
    """Pre-trains `encoder` by rebuilding the patches it is not shown.

    `compile(optimizer)` and `fit` work on the pipeline's batches and on a plain uint8 array; the loss is inside.

    Args:
        encoder: a `VisionTransformer`.
        decoder_embed_dim: width of the decoder.
        decoder_depth: number of the decoder's blocks.
        decoder_num_heads: attention heads of the decoder's blocks.
        mask_ratio: share of the patches removed.
        norm_pix_loss: predict pixels normalised by their own patch (better representations), or plain pixels.
        seed: of the masks, where the batch brings no noise.

    Call arguments:
        features: uint8 images (batch, height, width, channels), or a dict with `image` and, optionally, `noise`
            (batch, num_patches) float32: its smallest entries stay visible.

    Output shape:
        A dict: `prediction` (batch, num_patches, values), `mask` (batch, num_patches; 1 = removed, 0 = kept),
        `latent` (batch, 1 + num_visible, embed_dim; visible patches by ascending noise).
    """

    def __init__(
        self,
        encoder,
        decoder_embed_dim=512,
        decoder_depth=8,
        decoder_num_heads=16,
        mask_ratio=0.75,
        norm_pix_loss=True,
        seed=None,
        **kwargs,
    ):
        kwargs.setdefault("name", "mae")
        kwargs.setdefault("dtype", encoder.dtype_policy)
        super().__init__(autocast=False, **kwargs)
        if num_visible(encoder.num_patches, mask_ratio) == encoder.num_patches:
            raise ValueError(
                "At least one patch must be removed, or there is nothing to rebuild. "
                f"Received: mask_ratio={mask_ratio} of {encoder.num_patches} patches"
            )
        self.encoder = encoder
        self.decoder_embed_dim = decoder_embed_dim
        self.decoder_depth = decoder_depth
        self.decoder_num_heads = decoder_num_heads
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss
        self.seed = seed
        self.masking = RandomMasking(mask_ratio, seed=seed, dtype="float32", name="masking")
        self.decoder = Decoder(
            encoder.grid_size,
            encoder.patch_size**2 * encoder.channels,
            decoder_embed_dim,
            decoder_depth,
            decoder_num_heads,
            dtype=self.dtype_policy,
            name="decoder",
        )

    def build(self, input_shape=None):
        if self.built:
            return
        self.encoder.build()
        visible = num_visible(self.encoder.num_patches, self.mask_ratio)
        self.decoder.build((None, visible + 1, self.encoder.embed_dim))
        self.built = True

    def call(self, features, training=False):
        features = features if isinstance(features, dict) else {"image": features}
        patches = self.encoder.normalized_patches(features["image"])  # (B, N, P*P*C)
        ids_keep, ids_restore, mask = self.masking(patches, noise=features.get("noise"))
        visible = gather_tokens(patches, ids_keep)  # (B, L, P*P*C)
        latent = self.encoder.encode(visible, ids_keep, training=training)  # (B, L+1, D)
        prediction = self.decoder(latent, ids_restore, training=training)  # (B, N, P*P*C)
        return {"prediction": prediction, "mask": mask, "latent": latent}

    def target(self, features):
        """What `prediction` should be: (batch, num_patches, values) float32."""
        images = features["image"] if isinstance(features, dict) else features
        patches = self.encoder.normalized_patches(images)
        return normalized_pixels(patches) if self.norm_pix_loss else patches

    def sample_losses(self, features, labels, outputs):
        """Mean squared error of each sample over its removed patches: (batch,) float32. Labels are not used."""
        error = ops.square(ops.cast(outputs["prediction"], "float32") - self.target(features))
        patch_losses = ops.mean(error, axis=-1)  # (B, N)
        mask = outputs["mask"]
        return ops.sum(patch_losses * mask, axis=1) / ops.sum(mask, axis=1)  # (B,)

    def sample_metrics(self, features, labels, outputs):
        """Per-sample values whose weighted means are reported: the loss."""
        return {"loss": self.sample_losses(features, labels, outputs)}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return weighted_mean(self.sample_losses(x, y, y_pred), sample_weight)

    def reconstruct(self, features):
        """Images for looking at: what the encoder sees, and what the decoder makes of it.

        A model of normalised pixels predicts each patch up to its mean and deviation; here the true patch's own
        statistics are put back. That shows more than the model knows: figures must say so.

        Returns:
            (masked, reconstruction): uint8 (batch, height, width, channels); removed patches are mid-grey in the
            first, predicted in the second; visible patches are the original in both.
        """
        features = features if isinstance(features, dict) else {"image": features}
        outputs = self(features, training=False)
        patches = self.encoder.normalized_patches(features["image"])  # (B, N, P*P*C)
        prediction = ops.cast(outputs["prediction"], "float32")
        if self.norm_pix_loss:
            mean, std = pixel_statistics(patches)
            prediction = prediction * std + mean
        removed = outputs["mask"][:, :, None]  # (B, N, 1)
        grey = self.encoder.normalized_patches(ops.full_like(features["image"], 128))
        masked, filled = (patches * (1 - removed) + fill * removed for fill in (grey, prediction))
        return self.encoder.denormalized_images(masked), self.encoder.denormalized_images(filled)

    def get_config(self):
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "decoder_embed_dim": self.decoder_embed_dim,
            "decoder_depth": self.decoder_depth,
            "decoder_num_heads": self.decoder_num_heads,
            "mask_ratio": self.mask_ratio,
            "norm_pix_loss": self.norm_pix_loss,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        encoder = keras.saving.deserialize_keras_object(config["encoder"])
        return cls(**{**config, "encoder": encoder})
