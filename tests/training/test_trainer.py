"""What a step of `fit` reports, and weighted evaluation."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.step_losses import StepLosses
from fixtures.tiny_vit import TINY_VIT

from keras_mae.models import Classifier, MaskedAutoencoder, VisionTransformer
from keras_mae.training.adamw import AdamW
from keras_mae.training.trainer import Trainer, weighted_means


def test_a_step_reports_its_own_loss_not_the_running_mean(tiny_encoder, halves):
    images, _ = halves
    noise = np.random.default_rng(0).random((16, 16), dtype="float32")
    model = MaskedAutoencoder(tiny_encoder, 16, 1, 2)
    model.build()
    batches = [{"image": images[i : i + 4], "noise": noise[i : i + 4]} for i in (0, 4, 8, 12)]
    expected = [float(model.compute_loss(b, None, model(b), None)) for b in batches]
    trainer = Trainer(model)
    trainer.compile(optimizer=AdamW(0.0))
    dataset = tf.data.Dataset.from_tensor_slices({"image": images, "noise": noise}).batch(4)
    log = StepLosses()
    trainer.fit(dataset, callbacks=[log], verbose=0, shuffle=False)
    np.testing.assert_allclose(log.losses, expected, rtol=1e-6)


@pytest.mark.parametrize("compiled", ["step", "elementwise"])
def test_compiled_and_plain_steps_agree(tiny_encoder, halves, compiled):
    images, _ = halves
    features = {"image": tf.constant(images), "noise": tf.random.stateless_uniform((16, 16), (1, 2))}
    model = MaskedAutoencoder(tiny_encoder, 16, 1, 2)
    model.build()
    start, results = [w.numpy() for w in model.trainable_variables], []
    for way in ("nothing", compiled):
        for weight, value in zip(model.trainable_variables, start, strict=True):
            weight.assign(value)
        trainer, log = Trainer(model, compiled=way), StepLosses()
        trainer.compile(optimizer=keras.optimizers.SGD(0.1), jit_compile=False)
        dataset = tf.data.Dataset.from_tensors(features).repeat(3)
        trainer.fit(dataset, callbacks=[log], verbose=0, shuffle=False)
        results.append((log.losses, [w.numpy() for w in model.trainable_variables]))
    (plain_losses, plain), (losses, weights) = results
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-5)
    for ours, expected, before in zip(weights, plain, start, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max() + 1e-7)
        assert np.any(ours != before)


def test_an_unknown_way_to_compile_is_refused(tiny_encoder):
    with pytest.raises(ValueError, match="compiled must be one of step, elementwise, nothing. Received: 'xla'"):
        Trainer(MaskedAutoencoder(tiny_encoder, 16, 1, 2), compiled="xla")


def test_padding_does_not_count(halves):
    images, labels = halves
    classifier = Classifier(VisionTransformer(**TINY_VIT, final_norm=False), num_classes=2)
    classifier.build()
    classifier.head.kernel.assign(np.random.default_rng(0).normal(size=(16, 2)))
    logits = np.asarray(classifier(images[:6]))
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected_loss = -log_softmax[np.arange(6), labels[:6]].mean()
    padded = np.concatenate([images[:6], images[:1], images[:1]])
    padded_labels = np.concatenate([labels[:6], [1, 1]]).astype("int32")
    weights = np.array([1, 1, 1, 1, 1, 1, 0, 0], "float32")
    dataset = tf.data.Dataset.from_tensor_slices(({"image": padded}, padded_labels, weights)).batch(4)
    means = weighted_means(classifier, dataset)
    assert means["samples"] == 6
    np.testing.assert_allclose(means["loss"], expected_loss, rtol=1e-5)
    np.testing.assert_allclose(means["accuracy"], (logits.argmax(axis=1) == labels[:6]).mean(), rtol=1e-6)
    assert means["top5_accuracy"] == 1.0
