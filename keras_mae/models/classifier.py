"""A classifier on top of a pre-trained encoder (Section 4.1 and appendix A.1, "End-to-end fine-tuning")."""

import keras
from keras import ops

from keras_mae.layers.batch_augmentation import (
    ERASING_DRAWS,
    MIX_DRAWS,
    draw_mixing,
    mix_images,
    mix_targets,
    random_erasing,
)
from keras_mae.layers.dense import Dense
from keras_mae.layers.elementwise import LayerNorm
from keras_mae.layers.patches import patchify
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
        mixup: in training, the share of an image in its mixture is Beta(mixup, mixup); 0 for no mixup.
        cutmix: the same for the area that cutmix leaves; 0 for no cutmix.
        mixup_prob: probability that a batch is mixed at all.
        mixup_switch_prob: probability that it is cutmix, where both are on.
        erasing: probability that a box of a training image is erased (before it is mixed).

    Call arguments:
        features: uint8 images (batch, height, width, channels), or a dict with `image` and uniform draws from
            [0, 1): optionally `drop_noise` (batch, 2 * depth) for drop path, and, in training, `mix_noise`
            (batch, MIX_DRAWS) for mixup or cutmix and `erasing_noise` (batch, ERASING_DRAWS) for erasing. Images
            and targets are mixed in two places by the same draws, so the model cannot draw them itself.
        training: whether drop path, erasing and mixing are active.

    Output shape:
        Logits (batch, num_classes), float32.

    Raises:
        ValueError: the encoder has a final norm, an argument is out of its range, or draws are missing.
    """

    encoder_final_norm = False

    def __init__(
        self,
        encoder,
        num_classes,
        label_smoothing=0.0,
        mixup=0.0,
        cutmix=0.0,
        mixup_prob=1.0,
        mixup_switch_prob=0.5,
        erasing=0.0,
        **kwargs,
    ):
        kwargs.setdefault("name", "classifier")
        kwargs.setdefault("dtype", encoder.dtype_policy)
        super().__init__(autocast=False, **kwargs)
        if encoder.final_norm != self.encoder_final_norm:
            raise ValueError(
                f"{type(self).__name__} needs an encoder built with final_norm={self.encoder_final_norm}. "
                f"Received: an encoder with final_norm={encoder.final_norm}"
            )
        if min(mixup, cutmix) < 0:
            raise ValueError(f"mixup and cutmix must be at least 0. Received: mixup={mixup}, cutmix={cutmix}")
        if not all(0 <= p <= 1 for p in (mixup_prob, mixup_switch_prob, erasing)):
            raise ValueError(
                "Probabilities must be at least 0 and at most 1. Received: "
                f"mixup_prob={mixup_prob}, mixup_switch_prob={mixup_switch_prob}, erasing={erasing}"
            )
        self.encoder = encoder
        self.encoder.position_embedding.trainable = True
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.mixup = mixup
        self.cutmix = cutmix
        self.mixup_prob = mixup_prob
        self.mixup_switch_prob = mixup_switch_prob
        self.erasing = erasing
        self.norm = self.make_norm()
        # Logits and the softmax after them stay in float32 under mixed precision.
        self.head = Dense(
            num_classes,
            kernel_initializer=self.make_head_initializer(),
            dtype="float32",
            name="head",
        )

    def make_norm(self):
        """The layer between the pooled tokens and the head."""
        return LayerNorm(dtype=self.dtype_policy, name="norm")

    def make_head_initializer(self):
        """Of the head's kernel."""
        return keras.initializers.TruncatedNormal(stddev=2e-5)

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
        features = features if isinstance(features, dict) else {"image": features}
        images = self.encoder.normalized_images(features["image"])  # (B, H, W, C)
        if training:
            images = self._augment(images, features)
        patches = patchify(images, self.encoder.patch_size)  # (B, N, P*P*C)
        tokens = self.encoder.encode(patches, drop_noise=features.get("drop_noise"), training=training)  # (B, N+1, D)
        return self.head(self.norm(ops.mean(tokens[:, 1:], axis=1)))  # (B, num_classes)

    def _augment(self, images, features):
        if self.erasing:
            images = random_erasing(images, _draws(features, "erasing_noise", ERASING_DRAWS), self.erasing)
        if self.mixup or self.cutmix:
            keep, _ = self._mixing(features)
            images = mix_images(images, keep)
        return images

    def _mixing(self, features):
        noise = _draws(features, "mix_noise", MIX_DRAWS)
        size = self.encoder.image_size
        return draw_mixing(noise, size, self.mixup, self.cutmix, self.mixup_prob, self.mixup_switch_prob)

    def sample_losses(self, features, labels, outputs, training=False):
        """Cross-entropy of each sample: (batch,) float32; its target smoothed, then mixed, in training only."""
        smoothing = self.label_smoothing if training else 0.0
        targets = ops.one_hot(labels, self.num_classes) * (1 - smoothing) + smoothing / self.num_classes
        if training and (self.mixup or self.cutmix):
            _, share = self._mixing(features)
            targets = mix_targets(targets, share)
        return ops.categorical_crossentropy(targets, outputs, from_logits=True)  # (B,)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return weighted_mean(self.sample_losses(x, y, y_pred, training=training), sample_weight)

    def get_config(self):
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "num_classes": self.num_classes,
            "label_smoothing": self.label_smoothing,
            "mixup": self.mixup,
            "cutmix": self.cutmix,
            "mixup_prob": self.mixup_prob,
            "mixup_switch_prob": self.mixup_switch_prob,
            "erasing": self.erasing,
        }

    @classmethod
    def from_config(cls, config):
        encoder = keras.saving.deserialize_keras_object(config["encoder"])
        return cls(**{**config, "encoder": encoder})


def _draws(features, name, count):
    given = sorted(features) if isinstance(features, dict) else ["image"]
    if name not in given:
        raise ValueError(
            f"Training with mixup, cutmix or erasing needs the feature {name!r}: (batch, {count}) uniform draws, such "
            f"as `pipeline.load(..., noise={{{name!r}: {count}}})` sends. Received: features {given}"
        )
    return features[name]
