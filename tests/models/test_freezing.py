"""Which variables of an encoder train when only its last blocks do."""

import numpy as np
import pytest
import tensorflow as tf
from fixtures.tiny_vit import TINY_VIT

from keras_mae.models import Classifier, VisionTransformer
from keras_mae.models.freezing import freeze_encoder
from keras_mae.training.adamw import AdamW
from keras_mae.training.layer_decay import layer_decay_scales
from keras_mae.training.trainer import Trainer

MLP_HALF = {f"block_1/{name}" for name in ("norm2/gamma", "norm2/beta")}
MLP_HALF |= {f"block_1/{layer}/{name}" for layer in ("mlp_hidden", "mlp_output") for name in ("kernel", "bias")}


def make_classifier(trainable_blocks):
    model = Classifier(VisionTransformer(**TINY_VIT, final_norm=False), num_classes=2)
    model.build()
    freeze_encoder(model.encoder, trainable_blocks)
    return model


def trained_paths(model):
    return {v.path.removeprefix("classifier/encoder/") for v in model.encoder.trainable_variables}


@pytest.mark.parametrize("number, blocks", [(0, ()), (1, ("block_1",)), (2.0, ("block_0", "block_1"))])
def test_whole_blocks_train(number, blocks):
    model = make_classifier(number)
    expected = {v.path.removeprefix("classifier/encoder/") for v in model.encoder.weights}
    assert trained_paths(model) == {path for path in expected if path.startswith(blocks or "none")}


def test_half_a_block_is_its_mlp():
    assert trained_paths(make_classifier(0.5)) == MLP_HALF


@pytest.mark.parametrize("number", [0, 0.5, 1, 2])
def test_rates_are_those_of_full_fine_tuning(number):
    model = make_classifier(number)
    scales = layer_decay_scales(model, 0.5)
    assert set(scales) == {v.path for v in model.trainable_variables}
    full = Classifier(VisionTransformer(**TINY_VIT, final_norm=False), num_classes=2)
    full.build()
    assert scales.items() <= layer_decay_scales(full, 0.5).items()


@pytest.mark.parametrize("number", [0, 0.5, 1])
def test_what_is_frozen_stays_to_the_last_bit(number):
    model = make_classifier(number)
    optimizer = AdamW(0.01, ema_decay=0.5, learning_rate_scales=layer_decay_scales(model, 0.5))
    optimizer.build(model.trainable_variables)
    trainer = Trainer(model)
    trainer.compile(optimizer=optimizer, jit_compile=False)
    trained = {v.path for v in model.trainable_variables}
    before = {v.path: v.numpy() for v in model.weights}
    rng = np.random.default_rng(0)
    step = tf.function(trainer.train_step)
    for _ in range(3):
        images, labels = rng.integers(0, 256, (4, 8, 8, 1), dtype="uint8"), rng.integers(0, 2, 4, dtype="int32")
        step((tf.constant(images), tf.constant(labels)))
    with optimizer.averaged_weights():
        moved = {v.path for v in model.weights if not np.array_equal(v.numpy(), before[v.path])}
    assert moved == trained


@pytest.mark.parametrize("number", [3, 1.5, -1])
def test_other_parts_are_refused(number):
    with pytest.raises(ValueError, match=f"a whole number up to the encoder's 2. Received: {number}"):
        make_classifier(number)
