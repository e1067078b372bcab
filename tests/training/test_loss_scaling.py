"""The loss scale of float16: what it does to gradients, updates and logs, and that a run goes on with it."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.linear_model import LinearModel, linear_batch
from fixtures.linear_run import interrupt, train, values
from fixtures.step_losses import StepLosses
from fixtures.tiny_vit import TINY_VIT

from keras_mae.models import MaskedAutoencoder, VisionTransformer
from keras_mae.training.adamw import AdamW
from keras_mae.training.finite_loss import NonFiniteLossError
from keras_mae.training.lars import LARS
from keras_mae.training.loss_scaling import MAX_SCALE, LossScale
from keras_mae.training.strategy import dtype_policy
from keras_mae.training.trainer import Trainer


def test_the_scale_halves_on_overflow_and_doubles_after_enough_finite_steps():
    loss_scale = LossScale(initial_scale=8.0, growth_steps=2)
    scales = []
    for gradient in (1.0, 1.0, np.inf, 1.0, np.nan, 1.0, 1.0):
        loss_scale.unscale([tf.ones(3), tf.constant([1.0, gradient])])
        scales.append(loss_scale.state()["scale"])
    assert scales == [8, 16, 8, 8, 4, 4, 8]
    assert loss_scale.state() == {"scale": 8.0, "finite_steps": 0}
    other = LossScale()
    other.restore({"scale": MAX_SCALE, "finite_steps": 1999})
    np.testing.assert_allclose(other.unscale([tf.fill(2, MAX_SCALE * 3)])[0], [3, 3])
    assert other.state() == {"scale": MAX_SCALE, "finite_steps": 0}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("build", [AdamW, LARS])
def test_a_step_that_overflows_changes_the_scale_alone(build, compiled):
    rng = np.random.default_rng(0)
    variables = [keras.Variable(rng.normal(size=shape), name=f"kernel_{i}") for i, shape in enumerate([(2, 3), (3,)])]
    optimizer = build(0.1, ema_decay=0.8, global_clipnorm=1.0)
    optimizer.build(variables)
    optimizer.scale_losses()
    if compiled:
        optimizer.compile_updates()
    gradients = [tf.constant(rng.normal(size=v.shape), "float32") * 2.0**15 for v in variables]
    optimizer.apply(gradients)
    before = [v.numpy() for v in (*variables, *optimizer.variables)]
    optimizer.apply([gradients[0], tf.constant([1.0, np.inf, 2.0])])
    for v, expected in zip((*variables, *optimizer.variables), before, strict=True):
        np.testing.assert_array_equal(v.numpy(), expected)
    assert optimizer.loss_scale.state() == {"scale": 2.0**14, "finite_steps": 0}
    optimizer.apply(gradients)
    assert int(optimizer.iterations.numpy()) == 2
    assert np.all(variables[0].numpy() != before[0])


def trained(precision, optimizer, steps=5, **options):
    model = LinearModel(dtype=dtype_policy(precision))
    model.build()
    optimizer.build(model.trainable_variables)
    if precision == "float16":
        optimizer.scale_losses()
        optimizer.loss_scale.restore({"scale": 2.0**10, "finite_steps": 0})  # no overflow, or losses are a step late
    trainer, log = Trainer(model, **options), StepLosses()
    trainer.compile(optimizer=optimizer, jit_compile=False)
    dataset = tf.data.Dataset.from_tensors(linear_batch()).repeat(steps)
    trainer.fit(dataset, callbacks=[log], verbose=0, shuffle=False)
    return log.losses, [w.numpy() for w in model.trainable_variables]


def test_float16_trains_as_float32_and_reports_the_unscaled_loss():
    options = {"compiled": "step", "accumulation_steps": 2}
    losses, weights = trained("float16", LARS(0.05, global_clipnorm=2.0), **options)
    expected_losses, expected = trained("float32", LARS(0.05, global_clipnorm=2.0), **options)
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-3)
    for ours, theirs in zip(weights, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=5e-3, atol=1e-3)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_its_scale_and_may_change_the_precision(tmp_path):
    rows, exported = train(tmp_path / "whole", "float16", accumulation_steps=2)
    losses, scales = values(rows, "loss"), values(rows, "loss_scale")
    assert scales == [2.0**14] * 6  # the first step overflows
    assert losses[0] == losses[1] > losses[2]
    rates = values(rows, "learning_rate")
    assert rates[0] == rates[1] > rates[2]  # and is no update
    interrupt(tmp_path / "parts", "float16", accumulation_steps=2)
    shutil.copytree(tmp_path / "parts", tmp_path / "other")
    resumed_rows, resumed = train(tmp_path / "parts", "float16", accumulation_steps=2)
    assert (values(resumed_rows, "loss"), values(resumed_rows, "loss_scale")) == (losses, scales)
    for ours, expected in zip(resumed, exported, strict=True):
        np.testing.assert_array_equal(ours, expected)
    other_rows, _ = train(tmp_path / "other", "float32", accumulation_steps=2)
    assert len(values(other_rows, "loss_scale")) == 3
    np.testing.assert_allclose(values(other_rows, "loss"), losses, rtol=2e-3)


def test_without_a_scale_small_enough_training_stops():
    loss_scale = LossScale()
    assert loss_scale.figures() == {"loss_scale": 2.0**15}
    loss_scale.restore({"scale": 0.5, "finite_steps": 0})
    with pytest.raises(NonFiniteLossError, match="it fell to 0.5, and no update was made"):
        loss_scale.figures()


@pytest.mark.slow
def test_a_masked_autoencoder_trains_in_float16():
    losses = {}
    noise = np.random.default_rng(0).random((8, 16), dtype="float32")
    images = np.random.default_rng(1).integers(0, 256, (8, 8, 8, 1), dtype="uint8")
    for precision in ("float16", "float32"):
        keras.utils.set_random_seed(0)
        encoder = VisionTransformer(**TINY_VIT, dtype=dtype_policy(precision))
        model = MaskedAutoencoder(encoder, 16, 1, 2)
        model.build()
        optimizer = AdamW(1e-2)
        optimizer.build(model.trainable_variables)
        if precision == "float16":
            optimizer.scale_losses()
        optimizer.compile_updates()
        trainer, log = Trainer(model, compiled="elementwise", accumulation_steps=2), StepLosses()
        trainer.compile(optimizer=optimizer, jit_compile=False)
        dataset = tf.data.Dataset.from_tensors({"image": images, "noise": noise}).repeat(10)
        trainer.fit(dataset, callbacks=[log], verbose=0, shuffle=False)
        losses[precision] = log.losses
        assert {w.dtype for w in model.trainable_variables} == {"float32"}
    np.testing.assert_allclose(losses["float16"], losses["float32"], rtol=5e-3)
    assert losses["float16"][-1] < 0.9 * losses["float16"][0]
