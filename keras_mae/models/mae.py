"""The masked autoencoder (arXiv 2111.06377, Figure 1): encode the visible patches, rebuild the removed ones.

The choices of the paper's Table 1 are its arguments; their defaults are the paper's.

Where it differs from the reference on purpose: removed patches are dropped before the patch embedding instead of
after it. The embedding is linear in each patch alone, so the result is the same and three quarters of it are saved.
And in training the decoder's last block and its prediction leave out visible patches, which no loss reads.
"""

import keras
import numpy as np
from keras import ops

from keras_mae.layers.masking import gather_tokens, num_visible
from keras_mae.layers.masking_kinds import make_masking
from keras_mae.models.decoder import Decoder
from keras_mae.models.targets import PixelTarget
from keras_mae.models.weighted_mean import weighted_mean


@keras.saving.register_keras_serializable(package="keras_mae")
class MaskedAutoencoder(keras.Model):
    """Pre-trains `encoder` by rebuilding the patches it is not shown.

    `compile(optimizer)` and `fit` work on the pipeline's batches and on a plain uint8 array; the loss is inside.

    Args:
        encoder: a `VisionTransformer`; its `remat` holds for the decoder too.
        decoder_embed_dim: width of the decoder.
        decoder_depth: number of the decoder's blocks.
        decoder_num_heads: attention heads of the decoder's blocks.
        mask_ratio: share of the patches removed.
        norm_pix_loss: predict pixels normalised by their own patch (better representations), or plain pixels. Only
            read where `target` is None.
        seed: of the masks, where the batch brings no noise.
        mask_kind: how the removed patches lie, "random", "block" or "grid" (Table 1f).
        target: what is predicted, a layer as `models.targets` describes them (Table 1d); None: pixels.
        encoder_mask_tokens: the encoder takes all patches, with a mask token in place of each removed one (Table 1c):
            worse and several times slower.
        loss_on_all_patches: average the loss over all patches instead of the removed ones.

    Call arguments:
        features: uint8 images (batch, height, width, channels), or a dict with `image` and, optionally, `noise`
            (batch, num_draws) uniform float32, which the mask is a function of. With "random" masks the smallest
            entries stay visible.
        training: whether it is a training step, which predicts no more than its loss reads.

    Output shape:
        A dict: `prediction` (batch, num_patches, values; in training 0 for visible patches, unless the loss reads
        them), `mask` (batch, num_patches; 1 = removed, 0 = kept),
        `latent` (batch, 1 + num_visible, embed_dim; visible patches in the order that the masking gives them, by
        ascending noise for "random"). With `encoder_mask_tokens` the latent has all patches, in their own order.

    Raises:
        ValueError: a mask that removes nothing or everything, an unknown kind, or a target that does not fit.
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
        mask_kind="random",
        target=None,
        encoder_mask_tokens=False,
        loss_on_all_patches=False,
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
        self.mask_kind = mask_kind
        self.target = target or _pixel_target(encoder, norm_pix_loss)
        self.encoder_mask_tokens = encoder_mask_tokens
        self.loss_on_all_patches = loss_on_all_patches
        _check_target(self.target, encoder)
        self.target.trainable = False
        self.masking = make_masking(mask_kind, mask_ratio, encoder.grid_size, seed, dtype="float32", name="masking")
        self.decoder = Decoder(
            encoder.grid_size,
            self.target.num_values,
            decoder_embed_dim,
            decoder_depth,
            decoder_num_heads,
            mask_tokens=not encoder_mask_tokens,
            remat=encoder.remat,
            dtype=self.dtype_policy,
            name="decoder",
        )

    @property
    def num_draws(self):
        """How many uniform numbers a sample's `noise` has."""
        return self.masking.num_draws(self.encoder.num_patches)

    @property
    def can_reconstruct(self):
        """Whether the target's predictions can be shown as pixels."""
        return hasattr(self.target, "to_patches")

    def build(self, input_shape=None):
        if self.built:
            return
        self.encoder.build()
        self.decoder.build((None, None, self.encoder.embed_dim))
        if self.encoder_mask_tokens:
            self.mask_token = self.add_weight(
                name="mask_token",
                shape=(1, 1, self.encoder.embed_dim),
                initializer=keras.initializers.RandomNormal(stddev=0.02),
            )
        self.built = True

    def call(self, features, training=False):
        features = features if isinstance(features, dict) else {"image": features}
        patches = self.encoder.normalized_patches(features["image"])  # (B, N, P*P*C)
        ids_keep, ids_restore, mask = self.masking(patches, noise=features.get("noise"))
        if self.encoder_mask_tokens:
            latent = self._encode_all(patches, mask, training)  # (B, N+1, D)
            prediction = self.decoder(latent, training=training)  # (B, N, values)
        else:
            visible = gather_tokens(patches, ids_keep)  # (B, L, P*P*C)
            latent = self.encoder.encode(visible, ids_keep, training=training)  # (B, L+1, D)
            removed_only = training and not self.loss_on_all_patches
            prediction = self.decoder(latent, ids_restore, training=training, removed_only=removed_only)
        return {"prediction": prediction, "mask": mask, "latent": latent}

    def _encode_all(self, patches, mask, training):
        """Tokens of all patches (batch, 1 + num_patches, embed_dim); removed ones enter as mask tokens."""
        x = self.encoder.patch_embedding(patches)  # (B, N, D)
        x = ops.where(mask[:, :, None] > 0, ops.cast(self.mask_token, x.dtype), x)  # (B, N, D)
        return self.encoder.encode_embeddings(x, training=training)  # (B, N+1, D)

    def sample_losses(self, features, labels, outputs):
        """The target's loss of each sample, averaged over its removed (or all) patches: (batch,) float32.

        Labels are not used.
        """
        images = features["image"] if isinstance(features, dict) else features
        target = self.target(images, self.encoder.normalized_patches(images))
        prediction = ops.cast(outputs["prediction"], "float32")
        patch_losses = self.target.patch_losses(prediction, target)  # (B, N)
        counted = ops.ones_like(outputs["mask"]) if self.loss_on_all_patches else outputs["mask"]
        return ops.sum(patch_losses * counted, axis=1) / ops.sum(counted, axis=1)  # (B,)

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
            (masked, reconstruction): (batch, height, width, channels), uint8 or, as the images are, uint16. Removed
            patches are mid-grey in the first, predicted in the second; visible patches are the original in both.

        Raises:
            ValueError: the target's predictions cannot be shown as pixels.
        """
        if not self.can_reconstruct:
            raise ValueError(
                f"What this model predicts cannot be drawn: its target {type(self.target).__name__} has no method "
                "`to_patches`, which turns predictions into pixels."
            )
        features = features if isinstance(features, dict) else {"image": features}
        images, outputs = features["image"], self(features, training=False)
        dtype = "uint16" if keras.backend.standardize_dtype(images.dtype) == "uint16" else "uint8"
        patches = self.encoder.normalized_patches(images)  # (B, N, P*P*C)
        prediction = ops.stop_gradient(ops.cast(outputs["prediction"], "float32"))  # (B, N, values)
        prediction = self.target.to_patches(prediction, patches)  # (B, N, P*P*C)
        grey = self.encoder.normalized_patches(ops.full_like(images, 128 if dtype == "uint8" else 32768))
        removed = outputs["mask"][:, :, None]  # (B, N, 1)
        masked, filled = (patches * (1 - removed) + fill * removed for fill in (grey, prediction))
        return self.encoder.denormalized_images(masked, dtype), self.encoder.denormalized_images(filled, dtype)

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
            "mask_kind": self.mask_kind,
            "target": keras.saving.serialize_keras_object(self.target),
            "encoder_mask_tokens": self.encoder_mask_tokens,
            "loss_on_all_patches": self.loss_on_all_patches,
        }

    @classmethod
    def from_config(cls, config):
        parts = {name: keras.saving.deserialize_keras_object(config[name]) for name in ("encoder", "target")}
        return cls(**{**config, **parts})


def _pixel_target(encoder, normalize):
    return PixelTarget(encoder.patch_size**2 * encoder.channels, normalize, dtype="float32", name="target")


def _check_target(target, encoder):
    """Tries the target on one black image, which also builds it: it must give something for every patch."""
    if not isinstance(target, keras.layers.Layer) or not hasattr(target, "patch_losses"):
        raise ValueError(
            f"target must be a target layer (see `keras_mae.models.targets`) or None. Received: {target!r}"
        )
    images = np.zeros((1, *encoder.image_size, encoder.channels), "uint8")
    shape = tuple(target(images, encoder.normalized_patches(images)).shape)
    if shape[1:2] != (encoder.num_patches,):
        raise ValueError(
            f"{type(target).__name__} must give one target for each of the encoder's {encoder.num_patches} patches. "
            f"Received for one image: shape {shape}"
        )
