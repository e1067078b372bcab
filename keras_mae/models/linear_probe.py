"""The linear probe (appendix A.1 of the paper, "Linear probing"): a linear classifier on a frozen encoder."""

import keras
from keras import ops

from keras_mae.layers.batch_norm import BatchNorm
from keras_mae.models.backbone import POOLS, pool_tokens
from keras_mae.models.classifier import Classifier
from keras_mae.models.freezing import freeze_encoder


@keras.saving.register_keras_serializable(package="keras_mae")
class LinearProbe(Classifier):
    """Class token after the encoder's final norm -> BatchNorm without scale and offset -> linear head.

    Only the head trains. The encoder runs as in evaluation, and no gradient goes through it.

    Args:
        encoder: a `VisionTransformer` with its final norm. It is frozen; copies and saved files of it are not.
        num_classes: number of classes.
        pool: "class_token", or "patch_mean" of the other tokens.

    Call arguments:
        features: uint8 images (batch, height, width, channels), or a dict with `image`; or one with `pooled`
            (batch, embed_dim) instead, what the encoder has made of images before.
        training: whether BatchNorm takes the batch's own statistics.

    Output shape:
        Logits (batch, num_classes), float32.

    Raises:
        ValueError: the encoder has no final norm, or no such pool.
    """

    encoder_final_norm = True

    def __init__(self, encoder, num_classes, pool="class_token", **kwargs):
        super().__init__(encoder, num_classes, **kwargs)
        if pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}. Received: {pool!r}")
        self.pool = pool

    def make_norm(self):
        return BatchNorm(dtype="float32", name="norm")

    def make_head_initializer(self):
        return keras.initializers.RandomNormal(stddev=0.01)

    def build(self, input_shape=None):
        super().build(input_shape)
        freeze_encoder(self.encoder)

    def pooled(self, images):
        """What the head sees of images: (batch, embed_dim)."""
        tokens = self.encoder({"image": images}, training=False)  # (B, N+1, D)
        return ops.stop_gradient(pool_tokens(tokens, self.pool, self.encoder.grid_size))

    def call(self, features, training=False):
        features = features if isinstance(features, dict) else {"image": features}
        pooled = features["pooled"] if "pooled" in features else self.pooled(features["image"])  # (B, D)
        return self.head(self.norm(pooled, training=training))  # (B, num_classes)

    def get_config(self):
        return {
            **keras.Model.get_config(self),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "num_classes": self.num_classes,
            "pool": self.pool,
        }
