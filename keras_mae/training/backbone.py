"""A saved encoder as a layer of a Keras user's own model: uint8 images in, tokens, features or feature maps out."""

import os
from collections.abc import Sequence

import keras
import numpy as np

from keras_mae.models.backbone import OUTPUTS, block_numbers, pool_tokens, tokens_after_blocks
from keras_mae.models.vit import VisionTransformer
from keras_mae.training.saved_model import assign_weights, load_encoder, named_weights


@keras.saving.register_keras_serializable(package="keras_mae")
class Backbone(keras.layers.Layer):
    """A pre-trained encoder inside another model.

        image = keras.Input((224, 224, 3), dtype="uint8")
        features = Backbone.from_saved("runs/base/export", outputs="patch_mean", trainable=False)(image)
        model = keras.Model(image, keras.layers.Dense(10)(features))

    The tokens of every chosen block go through the encoder's final norm, where it has one. Trainable, all of the
    encoder is, the position table included, as in fine-tuning; `backbone.trainable = False` freezes all of it.

    Args:
        encoder: a `VisionTransformer`; nothing is masked.
        outputs: "tokens" (batch, 1 + num_patches, embed_dim), class token first; "class_token" or "patch_mean", of
            the others: (batch, embed_dim); "pyramid": the patches as a map (batch, rows, columns, embed_dim). All
            maps have the stride of the patches: nothing is resized.
        layers: a block's number, which gives one tensor; or several, which give a dict of them by the blocks' names,
            such as {"block_5": ..., "block_11": ...}. Negative numbers count from the end. None: the last block; for
            "pyramid" the last block of each quarter.

    Call arguments:
        images: uint8 or float on the scale 0..255, or uint16 on 0..65535; or a dict with `image` and, optionally,
            `drop_noise` (batch, 2 * depth).
        training: whether drop path is active.

    Input shape:
        (batch, height, width, channels), as the encoder has them.

    Output shape:
        As `outputs` and `layers` say.

    Raises:
        ValueError: there are no such outputs, or no such blocks.
    """

    def __init__(self, encoder, outputs="tokens", layers=None, trainable=True, **kwargs):
        kwargs.setdefault("name", "backbone")
        kwargs.setdefault("dtype", encoder.dtype_policy)
        # Without autocast whole pixels and the noise of drop path keep their digits under mixed precision.
        super().__init__(autocast=False, **kwargs)
        if outputs not in OUTPUTS:
            raise ValueError(f"outputs must be one of {', '.join(OUTPUTS)}. Received: {outputs!r}")
        self.encoder = encoder
        self.outputs = outputs
        self.layers = layers
        self.blocks = block_numbers(_chosen(outputs, layers, encoder.depth), encoder.depth)
        self.trainable = trainable
        self._tell_weights()

    @classmethod
    def from_saved(
        cls,
        path: str | os.PathLike,
        outputs: str = "tokens",
        layers: int | Sequence[int] | None = None,
        trainable: bool = True,
        image_size: int | tuple[int, int] | None = None,
        final_norm: bool | None = None,
        drop_path_rate: float = 0.0,
        dtype: str | None = None,
        name: str = "backbone",
    ) -> "Backbone":
        """The encoder of a saved model as a backbone. Blocks after the last chosen one are left out.

        Args:
            path: `.keras` file, SavedModel folder, or a run's, converted or other export folder, as `load_encoder`
                takes it; of a classifier, its encoder, which has no final norm.
            outputs: see the class.
            layers: see the class; numbers of the saved encoder's blocks.
            trainable: whether it trains; False freezes it.
            image_size: side in pixels, or (height, width), for which the position table is resized; None: the saved.
            final_norm: False drops the final norm, as detectors want their maps; None: as it was saved.
            drop_path_rate: share of dropped residual branches in the saved encoder's last block, in training.
            dtype: of the computation, such as "mixed_bfloat16"; None: Keras' global policy.
            name: of the layer.

        Raises:
            SavedModelError: there is no such model, or it does not fit.
            ValueError: there are no such outputs or blocks.
        """
        changes = {"image_size": image_size, "final_norm": final_norm}
        encoder = load_encoder(
            path,
            drop_path_rate=drop_path_rate,
            dtype=dtype or keras.config.dtype_policy().name,
            **{key: value for key, value in changes.items() if value is not None},
        )
        blocks = block_numbers(_chosen(outputs, layers, encoder.depth), encoder.depth)
        encoder = _first_blocks(encoder, max(blocks) + 1)
        return cls(encoder, outputs, blocks[0] if _is_one(outputs, layers) else blocks, trainable, name=name)

    def build(self, input_shape=None):
        self.encoder.build()
        self._tell_weights()

    def _tell_weights(self):
        # Keras hands `trainable` down to layers and weights inside only where its value changes.
        value = self.trainable
        self.trainable = not value
        self.trainable = value

    def call(self, images, training=False):
        features = images if isinstance(images, dict) else {"image": images}
        noise, grid_size = features.get("drop_noise"), self.encoder.grid_size
        tokens = tokens_after_blocks(self.encoder, features["image"], self.blocks, noise, training)
        found = {f"block_{number}": pool_tokens(x, self.outputs, grid_size) for number, x in tokens.items()}
        return next(iter(found.values())) if _is_one(self.outputs, self.layers) else found

    def get_config(self):
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "outputs": self.outputs,
            "layers": self.layers,
        }

    @classmethod
    def from_config(cls, config):
        encoder = keras.saving.deserialize_keras_object(config["encoder"])
        return cls(**{**config, "encoder": encoder})


def _is_one(outputs, layers):
    return isinstance(layers, int) or (layers is None and outputs != "pyramid")


def _chosen(outputs, layers, depth):
    """The blocks that `layers` names, as numbers in a list."""
    if layers is None and outputs == "pyramid":
        return sorted({max(depth * quarter // 4, 1) - 1 for quarter in (1, 2, 3, 4)})
    return [-1] if layers is None else [layers] if isinstance(layers, int) else layers


def _first_blocks(encoder, count):
    """A copy of an encoder with its first `count` blocks; the encoder itself, if it has no more."""
    if count == encoder.depth:
        return encoder
    rate = encoder.drop_path_rate * (count - 1) / max(encoder.depth - 1, 1)  # that of the block that is now the last
    copy = VisionTransformer.from_config({**encoder.get_config(), "depth": count, "drop_path_rate": rate})
    copy.build()
    arrays = {name: np.asarray(weight) for name, weight in named_weights(encoder).items()}
    left_out = tuple(f"block_{number}/" for number in range(count, encoder.depth))
    assign_weights({name: array for name, array in arrays.items() if not name.startswith(left_out)}, copy)
    return copy
