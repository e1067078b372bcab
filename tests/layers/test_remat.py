"""Blocks that are computed again give the same numbers, and keep less."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.tiny_vit import TINY_VIT

from keras_mae.layers import TransformerBlock
from keras_mae.layers.remat import run_blocks
from keras_mae.models import MaskedAutoencoder, VisionTransformer
from keras_mae.training.saved_model import export, load_encoder
from keras_mae.training.trainer import Trainer

DEPTH, BATCH, TOKENS, WIDTH = 2, 6, 5, 8


def build_blocks(drop_path_rate=0.4, dtype="float32"):
    blocks = [TransformerBlock(2, drop_path_rate=drop_path_rate, name=f"b{i}", dtype=dtype) for i in range(DEPTH)]
    for block in blocks:
        block.build((None, TOKENS, WIDTH))
    return blocks


def random(*shape):
    return tf.constant(np.random.default_rng(0).uniform(size=shape).astype("float32"))


def loss_and_gradients(blocks, x, noise, remat):
    """A loss that weighs every value by another number, and the gradients of the tokens and of all weights."""
    weights = [weight.value for block in blocks for weight in block.trainable_weights]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = run_blocks(blocks, x, noise, training=True, remat=remat)
        loss = tf.reduce_sum(tf.cast(y, "float32") * random(*y.shape))
    return loss, tape.gradient(loss, [x, *weights])


@pytest.mark.parametrize(
    "how, dtype",
    [
        ("eager", "float32"),
        ("graph", "float32"),
        ("graph", "mixed_bfloat16"),
        pytest.param("xla", "float32", marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_without(how, dtype):
    blocks, x, noise = build_blocks(dtype=dtype), random(BATCH, TOKENS, WIDTH) - 0.5, random(BATCH, 2 * DEPTH)

    def run(remat):
        step = lambda x, noise: loss_and_gradients(blocks, x, noise, remat)  # noqa: E731
        step = step if how == "eager" else tf.function(step, jit_compile=how == "xla")
        loss, gradients = step(x, noise)
        return [loss.numpy(), *(gradient.numpy() for gradient in gradients)]

    # In bfloat16 TensorFlow may round once or twice, as it joins a matrix product and its bias or does not.
    epsilon = 1e-5 if dtype == "float32" else 2e-2
    for ours, expected in zip(run("blocks"), run("none"), strict=True):
        np.testing.assert_allclose(ours, expected, atol=epsilon * np.abs(expected).max())
        assert np.any(expected != 0)


@pytest.mark.parametrize("compiled", [False, True])
def test_own_draws_of_drop_path_are_the_same_in_both_passes(compiled):
    blocks, x = build_blocks(drop_path_rate=0.6), random(64, TOKENS, WIDTH)

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = run_blocks(blocks[:1], x, training=True, remat="blocks")
        return y, tape.gradient(y, x, output_gradients=random(*x.shape))

    y, gradient = tf.function(step)(x) if compiled else step(x)
    passed = np.all(y.numpy() == x.numpy(), axis=(1, 2))  # both branches dropped: y is x, and so are their gradients
    assert 0 < passed.sum() < 64
    np.testing.assert_array_equal(np.all(gradient.numpy() == random(*x.shape).numpy(), axis=(1, 2)), passed)


@pytest.mark.parametrize("remat, training, calls", [("blocks", True, 2), ("none", True, 1), ("blocks", False, 1)])
def test_blocks_are_computed_again_in_training_only(remat, training, calls, monkeypatch):
    blocks, x, counted = build_blocks(0), random(1, TOKENS, WIDTH), []
    call = TransformerBlock.call
    monkeypatch.setattr(TransformerBlock, "call", lambda self, *a, **kw: counted.append(self) or call(self, *a, **kw))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = run_blocks(blocks, x, training=training, remat=remat)
    tape.gradient(y, x)
    assert [counted.count(block) for block in blocks] == DEPTH * [calls]


def build_mae(remat, depth=2):
    encoder = VisionTransformer(**{**TINY_VIT, "depth": depth}, remat=remat)
    model = MaskedAutoencoder(encoder, decoder_embed_dim=8, decoder_depth=depth, decoder_num_heads=2)
    model.build()
    return model


def test_the_decoder_does_as_its_encoder():
    assert (build_mae("blocks").decoder.remat, build_mae("none").decoder.remat) == ("blocks", "none")


@pytest.mark.parametrize("compiled", [pytest.param("step", marks=pytest.mark.slow), "elementwise"])
def test_fit_learns_the_same(compiled):
    features = {
        "image": np.random.randint(0, 256, (8, 8, 8, 1)).astype("uint8"),
        "noise": np.random.uniform(size=(8, 16)).astype("float32"),
    }
    batches = tf.data.Dataset.from_tensors(features).repeat()

    def weights(remat):
        keras.utils.set_random_seed(0)
        trainer = Trainer(build_mae(remat, depth=1), compiled=compiled)
        trainer.compile(optimizer=keras.optimizers.SGD(0.1), jit_compile=False)
        trainer.fit(batches, steps_per_epoch=3, verbose=0, shuffle=False)
        return trainer.model.get_weights()

    expected = weights("none")
    for ours, theirs in zip(weights("blocks"), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    keras.utils.set_random_seed(0)
    before = build_mae("none", depth=1).get_weights()
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(before, expected, strict=True))


@pytest.mark.slow
def test_an_exported_encoder_computes_the_same_and_can_do_without(tmp_path):
    encoder, image = build_mae("blocks").encoder, np.random.randint(0, 256, (2, 8, 8, 1)).astype("uint8")
    export(encoder, tmp_path / "export")
    expected = encoder(image).numpy()
    served = tf.saved_model.load(str(tmp_path / "export" / "saved_model")).signatures["serving_default"]
    np.testing.assert_allclose(served(image=tf.constant(image))["tokens"].numpy(), expected, atol=1e-6)
    for path in (tmp_path / "export", tmp_path / "export" / "saved_model"):
        kept, without = load_encoder(path), load_encoder(path, remat="none")
        assert (kept.remat, without.remat) == ("blocks", "none")
        np.testing.assert_allclose(without(image).numpy(), expected, atol=1e-6)


def test_an_unknown_word_is_an_error():
    with pytest.raises(ValueError, match="remat must be one of none, blocks. Received: 'full'"):
        VisionTransformer(**TINY_VIT, remat="full")


PEAK = """
import re, sys
import numpy as np, tensorflow as tf
from keras_mae.models import MaskedAutoencoder, VisionTransformer
from keras_mae.training.trainer import Trainer

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1e3

remat, compiled = sys.argv[1:]
encoder = VisionTransformer(image_size=128, patch_size=8, embed_dim=192, depth=6, num_heads=3, remat=remat)
model = MaskedAutoencoder(encoder, 192, 6, 3)
model.build()
trainer = Trainer(model, compiled=compiled)
trainer.compile(optimizer="sgd", jit_compile=False)
image = np.random.default_rng(0).integers(0, 256, (32, 128, 128, 3), dtype="uint8")
tf.linalg.matmul(tf.zeros((8, 8)), tf.zeros((8, 8)))
before = peak()
trainer.fit(tf.data.Dataset.from_tensors(image).repeat(), steps_per_epoch=2, verbose=0, shuffle=False)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="Linux tells the memory of processes")
@pytest.mark.parametrize("how", ["elementwise", "step"])
def test_a_process_that_trains_takes_less_than_half_of_the_memory(how):
    def peak(remat):
        words = [sys.executable, "-c", PEAK, remat, how]
        return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1])

    with_remat, without = peak("blocks"), peak("none")
    print(f"{how}: {without:.0f} MB without, {with_remat:.0f} MB with")  # shown with -rP
    assert with_remat < without / 2
