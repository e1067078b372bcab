"""What a step of `fit` reports, and weighted evaluation."""

import keras
import numpy as np
import tensorflow as tf
from fixtures.tiny_vit import TINY_VIT

from keras_mae.models import Classifier, MaskedAutoencoder, VisionTransformer
from keras_mae.training.optimizers import AdamW
from keras_mae.training.trainer import Trainer, weighted_means


class StepLosses(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))


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


def test_xla_and_plain_steps_agree(tiny_encoder, halves):
    images, _ = halves
    features = {"image": tf.constant(images), "noise": tf.random.stateless_uniform((16, 16), (1, 2))}
    model = MaskedAutoencoder(tiny_encoder, 16, 1, 2)
    model.build()
    results = []
    for xla in (False, True):
        trainer = Trainer(model, xla=xla)
        trainer.compile(optimizer=AdamW(0.0))
        step = trainer._forward_backward or trainer._loss_and_gradients
        results.append(step(features, None, None))
    (plain_loss, plain), (xla_loss, compiled) = results
    np.testing.assert_allclose(plain_loss, xla_loss, rtol=1e-5)
    for a, b in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max() + 1e-7)


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
