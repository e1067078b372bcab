"""The linear probe: its head against a NumPy loop and torch, what of the model trains, and which encoders it takes."""

import numpy as np
import pytest
import tensorflow as tf
from fixtures.tiny_vit import TINY_VIT

from keras_mae.models import Classifier, LinearProbe, VisionTransformer
from keras_mae.training.lars import LARS
from keras_mae.training.saved_model import export, load_encoder, load_model
from keras_mae.training.schedules import WarmupCosine
from keras_mae.training.trainer import Trainer

SCHEDULE = WarmupCosine(6.4, total_steps=20, warmup_steps=5)
STEPS, ROWS, DIM, CLASSES = 20, 12, 16, 3


def random_images():
    return np.random.default_rng(1).integers(0, 256, (8, 8, 8, 1), dtype="uint8")


def make_probe(pool="class_token", **overrides):
    model = LinearProbe(VisionTransformer(**{**TINY_VIT, **overrides}), CLASSES, pool)
    model.build()
    return model


def given_features():
    """Features of all steps and their classes, and the head to begin with."""
    rng = np.random.default_rng(0)
    pooled = rng.normal(2, 3, (STEPS, ROWS, DIM)).astype("float32")
    labels = rng.integers(0, CLASSES, (STEPS, ROWS)).astype("int32")
    return pooled, labels, rng.normal(0, 0.01, (DIM, CLASSES)).astype("float32")


def trained_probe():
    """Losses of 20 steps on given features, the model after them, and its logits for the last features."""
    pooled, labels, kernel = given_features()
    model = make_probe()
    model.head.kernel.assign(kernel)
    optimizer = LARS(SCHEDULE)
    optimizer.build(model.trainable_variables)
    trainer = Trainer(model)
    trainer.compile(optimizer=optimizer, jit_compile=False)
    step = tf.function(trainer.train_step)
    losses = [
        float(step(({"pooled": tf.constant(x)}, tf.constant(y)))["loss"]) for x, y in zip(pooled, labels, strict=True)
    ]
    return losses, model, model({"pooled": pooled[-1]}).numpy()


def numpy_probe():
    """The same in float64, written out: BatchNorm, linear map, cross-entropy, LARS of momentum .9, coefficient .001."""
    pooled, labels, kernel = given_features()
    kernel, bias = kernel.astype("float64"), np.zeros(CLASSES)
    momenta, mean, variance, losses = [0.0, 0.0], np.zeros(DIM), np.ones(DIM), []
    for t, (x, y) in enumerate(zip(pooled.astype("float64"), labels, strict=True)):
        normed = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)
        mean, variance = 0.9 * mean + 0.1 * x.mean(0), 0.9 * variance + 0.1 * x.var(0, ddof=1)
        logits = normed @ kernel + bias
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        losses.append(-np.log(shares[np.arange(ROWS), y]).mean())
        error = (shares - np.eye(CLASSES)[y]) / ROWS
        gradient = normed.T @ error
        gradient = gradient * 0.001 * np.linalg.norm(kernel) / np.linalg.norm(gradient)
        momenta = [0.9 * momenta[0] + gradient, 0.9 * momenta[1] + error.sum(0)]
        rate = float(SCHEDULE(t))
        kernel, bias = kernel - rate * momenta[0], bias - rate * momenta[1]
    return losses, kernel, bias, (pooled[-1] - mean) / np.sqrt(variance + 1e-6) @ kernel + bias


def torch_probe():
    import torch

    pooled, labels, kernel = given_features()
    norm, head = torch.nn.BatchNorm1d(DIM, affine=False, eps=1e-6), torch.nn.Linear(DIM, CLASSES)
    head.weight.data, head.bias.data = torch.tensor(kernel.T.copy()), torch.zeros(CLASSES)
    momenta, losses = {}, []
    for t, (x, y) in enumerate(zip(torch.tensor(pooled), torch.tensor(labels).long(), strict=True)):
        head.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(norm(x)), y)
        loss.backward()
        losses.append(loss.item())
        for name, weight in head.named_parameters():
            gradient = weight.grad
            if weight.ndim > 1:
                gradient = gradient * 0.001 * weight.data.norm() / gradient.norm()
            momenta[name] = 0.9 * momenta.get(name, 0) + gradient
            weight.data -= float(SCHEDULE(t)) * momenta[name]
    norm.eval()
    with torch.no_grad():
        return losses, head.weight.numpy().T, head.bias.numpy(), head(norm(torch.tensor(pooled[-1]))).numpy()


@pytest.mark.parametrize("reference", [numpy_probe, pytest.param(torch_probe, marks=pytest.mark.parity)])
def test_twenty_steps_of_the_probe_equal_the_reference(reference):
    losses, model, logits = trained_probe()
    for ours, theirs in zip((losses, model.head.kernel, model.head.bias, logits), reference(), strict=True):
        np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["class_token", "patch_mean"])
def test_the_encoder_stays_and_no_gradient_reaches_it(pool):
    images, labels = random_images(), np.arange(8) % CLASSES
    model = make_probe(pool, drop_path_rate=0.5)
    assert [v.path.split("/")[-2:] for v in model.trainable_variables] == [["head", "kernel"], ["head", "bias"]]
    with tf.GradientTape() as tape:
        loss = model.compute_loss(images, labels, model(images, training=True))
    assert tape.gradient(loss, [v.value for v in model.encoder.weights]) == [None] * len(model.encoder.weights)
    tokens = model.encoder(images).numpy()  # without drop path
    expected = tokens[:, 0] if pool == "class_token" else tokens[:, 1:].mean(1)
    np.testing.assert_allclose(model.norm.moving_mean, 0.1 * expected.mean(0), atol=1e-6)
    normed = (expected - expected.mean(0)) / np.sqrt(expected.var(0) + 1e-6)
    logits = normed @ model.head.kernel.numpy()
    np.testing.assert_allclose(model(images, training=True), logits, atol=1e-4)


def test_a_saved_probe_is_a_classifier_whose_encoder_trains_again(tmp_path):
    images = random_images()
    model = make_probe()
    model.norm.moving_mean.assign(np.arange(DIM))
    model.norm.moving_variance.assign(np.arange(1, DIM + 1))
    export(model, tmp_path / "export", classes=("a", "b", "c"))
    for path in (tmp_path / "export", tmp_path / "export" / "saved_model"):
        loaded = load_model(path)
        assert isinstance(loaded, Classifier) and len(loaded.trainable_variables) == 2
        np.testing.assert_allclose(loaded(images), model(images), atol=1e-6)
    encoder = load_encoder(tmp_path / "export", final_norm=False)
    tuned = Classifier(encoder, CLASSES)
    tuned.build()
    assert len(tuned.trainable_variables) == len(tuned.weights)
    signature = tf.saved_model.load(str(tmp_path / "export" / "saved_model")).signatures["classify"]
    np.testing.assert_allclose(signature(image=images)["logits"], model(images), atol=1e-5)


def test_the_probe_refuses():
    with pytest.raises(ValueError, match="LinearProbe needs an encoder built with final_norm=True. Received: .*False"):
        make_probe(final_norm=False)
    with pytest.raises(ValueError, match="pool must be one of class_token, patch_mean. Received: 'max'"):
        make_probe("max")
