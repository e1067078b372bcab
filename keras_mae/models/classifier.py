"""A classifier on top of a pre-trained encoder (Section 4.1 and appendix A.1, "End-to-end fine-tuning")."""

import keras
from keras import ops

from keras_mae.layers.transformer import LAYER_NORM_EPSILON
from keras_mae.models.weighted_mean import weighted_mean


@keras.saving.register_keras_serializable(package="keras_mae")
class Classifier(keras.Model):
    """Mean of the patch tokens -> LayerNorm -> linear head.

    The norm is new and the encoder's own final norm is dropped, as in the reference: build the encoder with
    `final_norm=False` (`load_encoder(path, final_norm=False)`).

    Args:
        encoder: a `VisionTransformer` without final norm. Its position table becomes trainable.
        num_classes: number of classes.
        label_smoothing: share of the probability spread over all classes in the training loss.

    Call arguments:
        features: uint8 images (batch, height, width, channels), or a dict with `image` and, optionally,
            `drop_noise` (batch, 2 * depth) for drop path.
        training: whether drop path is active.

    Output shape:
        Logits (batch, num_classes), float32.

    Raises:
        ValueError: the encoder has a final norm.
    """

    def __init__(self, encoder, num_classes, label_smoothing=0.0, **kwargs):
        kwargs.setdefault("name", "classifier")
        kwargs.setdefault("dtype", encoder.dtype_policy)
        super().__init__(autocast=False, **kwargs)
        if encoder.final_norm:
            raise ValueError(
                "Classifier pools the patch tokens and norms the mean: it needs an encoder built with "
                "final_norm=False. Received: an encoder with final_norm=True"
            )
        self.encoder = encoder
        self.encoder.position_embedding.trainable = True
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.norm = keras.layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype_policy, name="norm")
        # Logits and the softmax after them stay in float32 under mixed precision.
        self.head = keras.layers.Dense(
            num_classes,
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=2e-5),
            dtype="float32",
            name="head",
        )

    def build(self, input_shape=None):
        if self.built:
            return
        self.encoder.build()
        self.norm.build((None, self.encoder.embed_dim))
        self.head.build((None, self.encoder.embed_dim))
        self.built = True

    def sample_metrics(self, features, labels, outputs):
        """Per-sample values whose weighted means are reported: loss, accuracy (top-1), top5_accuracy."""
        best = ops.argsort(-outputs, axis=1)[:, :5]  # (B, 5)
        hits = ops.cast(ops.equal(ops.cast(best, "int32"), ops.cast(labels, "int32")[:, None]), "float32")
        return {
            "loss": self.sample_losses(features, labels, outputs),
            "accuracy": hits[:, 0],
            "top5_accuracy": ops.sum(hits, axis=1),
        }

    def call(self, features, training=False):
        tokens = self.encoder(features, training=training)  # (B, N+1, D)
        return self.head(self.norm(ops.mean(tokens[:, 1:], axis=1)))  # (B, num_classes)

    def sample_losses(self, features, labels, outputs, training=False):
        """Cross-entropy of each sample: (batch,) float32; smoothed in training only."""
        smoothing = self.label_smoothing if training else 0.0
        targets = ops.one_hot(labels, self.num_classes) * (1 - smoothing) + smoothing / self.num_classes
        return ops.categorical_crossentropy(targets, outputs, from_logits=True)  # (B,)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return weighted_mean(self.sample_losses(x, y, y_pred, training=training), sample_weight)

    def get_config(self):
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "num_classes": self.num_classes,
            "label_smoothing": self.label_smoothing,
        }

    @classmethod
    def from_config(cls, config):
        encoder = keras.saving.deserialize_keras_object(config["encoder"])
        return cls(**{**config, "encoder": encoder})
