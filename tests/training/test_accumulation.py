"""Gradient accumulation: the large batch's losses, weights and learning rates, whatever the number of parts."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.linear_model import LinearModel, linear_batch
from fixtures.step_losses import StepLosses
from fixtures.tiny_vit import TINY_VIT

from keras_mae.layers.batch_augmentation import ERASING_DRAWS
from keras_mae.models import Classifier, MaskedAutoencoder, VisionTransformer
from keras_mae.recipes import PretrainRecipe, peak_learning_rate, total_steps, warmup_steps
from keras_mae.training.accumulation import accumulate
from keras_mae.training.adamw import AdamW
from keras_mae.training.run import start_devices
from keras_mae.training.run_options import RunOptions
from keras_mae.training.schedules import WarmupCosine
from keras_mae.training.trainer import Trainer


def masked_autoencoder(halves, remat="none"):
    """A tiny one and its batch."""
    model = MaskedAutoencoder(VisionTransformer(**{**TINY_VIT, "depth": 1}, remat=remat), 16, 1, 2)
    return model, ({"image": halves[0], **draws({"noise": 16})},)


def rematerialised(halves):
    return masked_autoencoder(halves, "blocks")


def classifier(halves):
    """One with drop path and erasing, and its batch."""
    encoder = VisionTransformer(**{**TINY_VIT, "depth": 1}, final_norm=False, drop_path_rate=0.5)
    features = {"image": halves[0], **draws({"drop_noise": 2, "erasing_noise": ERASING_DRAWS})}
    return Classifier(encoder, num_classes=2, erasing=0.5), (features, halves[1].astype("int32"))


def linear(halves):
    return LinearModel(), linear_batch(16)


def draws(counts):
    """Noise of 16 samples."""
    rng = np.random.default_rng(1)
    return {name: rng.random((16, count), dtype="float32") for name, count in counts.items()}


def trained(build, halves, **options):
    """Losses of four steps, and the trained weights after them."""
    keras.utils.set_random_seed(0)
    model, batch = build(halves)
    model.build()
    trainer, log = Trainer(model, **options), StepLosses()
    # Not AdamW: what the gradients of key biases, 0 but for rounding, move there is rounding.
    trainer.compile(optimizer=keras.optimizers.SGD(0.01), jit_compile=False)
    trainer.fit(tf.data.Dataset.from_tensors(batch).repeat(4), callbacks=[log], verbose=0, shuffle=False)
    return log.losses, [w.numpy() for w in model.trainable_variables]


@pytest.mark.parametrize(
    ("build", "compiled", "steps"),
    [
        (linear, "nothing", 16),
        (linear, "step", 4),
        (classifier, "elementwise", 4),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (masked_autoencoder, "step", 2),
                (masked_autoencoder, "elementwise", 4),
                (rematerialised, "elementwise", 4),
                (classifier, "step", 4),
            ]
        ),
    ],
)
def test_the_parts_train_as_the_whole_batch(halves, build, compiled, steps):
    losses, weights = trained(build, halves, compiled=compiled, accumulation_steps=steps)
    expected_losses, expected = trained(build, halves, compiled=compiled)
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-6)
    assert losses[3] < losses[0]
    for ours, theirs in zip(weights, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_computation_is_traced_once_with_static_shapes():
    shapes, weight = [], tf.Variable([2.0, 3.0])

    def loss_and_gradients(x):
        shapes.append(x.shape.as_list())
        return tf.reduce_mean(x * weight), [tf.reduce_mean(x, axis=0) / 2]

    x = tf.random.stateless_normal((12, 2), (0, 1))
    step = tf.function(lambda: accumulate(loss_and_gradients, (x,), 3, [weight]), jit_compile=True, autograph=False)
    loss, (gradient,) = step()
    assert shapes == [[4, 2]]
    np.testing.assert_allclose(loss, np.mean(x * weight.numpy()), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.mean(x, axis=0) / 2, rtol=1e-5)


def test_parts_of_unequal_size_are_refused():
    with pytest.raises(ValueError, match=r"3 equal parts.*Received: a batch of shape \(16, 2\)"):
        accumulate(lambda x: (0.0, []), (tf.zeros((16, 2)),), 3, [])


def test_a_batch_that_does_not_fall_into_equal_parts_is_refused_before_anything_starts(tmp_path):
    recipe = PretrainRecipe(batch_size=16, warmup_share=0.1, accumulation_steps=3)
    with pytest.raises(ValueError, match="Received: batch_size=16, replicas=1, accumulation_steps=3"):
        start_devices(RunOptions(str(tmp_path), strategy="none", deterministic="false"), recipe)


class Constant(keras.Model):
    """A loss that no weight changes: what moves the weights is the decay, by the learning rate."""

    def build(self, input_shape=None):
        self.kernel = self.add_weight(name="kernel", shape=(1, 1), initializer="ones", dtype="float64")
        self.built = True

    def call(self, features, training=False):
        return self.kernel * 0

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.cast(keras.ops.sum(y_pred), "float32")


class Weight(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.weights = [1.0]

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(float(self.model.model.kernel.numpy()[0, 0]))


@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_the_learning_rate_of_each_update_equals_the_reference(accumulation_steps):
    samples, batch_size, epochs, warmup_epochs, peak, floor = 40, 8, 4, 1.5, 0.01, 1e-4
    recipe = PretrainRecipe(
        batch_size=batch_size,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        base_learning_rate=peak * 256 / batch_size,
        min_learning_rate=floor,
    )
    steps = total_steps(recipe, samples)
    schedule = WarmupCosine(peak_learning_rate(recipe), steps, warmup_steps(recipe, samples), floor)
    model = Constant(dtype="float64")
    model.build()
    trainer, log = Trainer(model, accumulation_steps=accumulation_steps), Weight()
    trainer.compile(optimizer=AdamW(schedule, weight_decay=1.0), jit_compile=False)
    batch = {"image": np.zeros((batch_size, 1), "uint8")}
    trainer.fit(tf.data.Dataset.from_tensors(batch).repeat(steps), callbacks=[log], verbose=0, shuffle=False)
    weights = np.array(log.weights)
    assert len(weights) == epochs * samples / batch_size + 1
    for t, rate in enumerate(1 - weights[1:] / weights[:-1]):  # decay shrinks a weight by rate x 1
        epoch = t * batch_size / samples
        if epoch < warmup_epochs:
            expected = peak * epoch / warmup_epochs
        else:
            share = (epoch - warmup_epochs) / (epochs - warmup_epochs)
            expected = floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * share))
        assert rate == pytest.approx(expected, rel=1e-5, abs=1e-9), f"update {t}"
