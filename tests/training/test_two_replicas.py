"""Clipping, averages, accumulation and the loss scale on two virtual CPUs: the same as on one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from fixtures.linear_model import LinearModel, linear_batch
from fixtures.step_losses import StepLosses

from keras_mae.training.adamw import AdamW
from keras_mae.training.lars import LARS
from keras_mae.training.strategy import dtype_policy, make_strategy, split_cpu
from keras_mae.training.trainer import Trainer

pytestmark = pytest.mark.slow

CASES = {
    "clip": ("float32", LARS, {"learning_rate": 0.5, "global_clipnorm": 1.0}, 1),
    "average": ("float32", AdamW, {"learning_rate": 0.1, "ema_decay": 0.8}, 1),
    "accumulation": ("float32", AdamW, {"learning_rate": 0.1}, 2),
    "float16": ("float16", LARS, {"learning_rate": 0.5, "global_clipnorm": 1.0, "ema_decay": 0.8}, 2),
}


def trained(strategy, precision, build_optimizer, options, accumulation_steps, spoil=False):
    """Losses of five steps, weights, averages and loss scale after them.

    Args:
        spoil: whether gradients of the batch's second half overflow.
    """
    with strategy.scope():
        model = LinearModel(dtype=dtype_policy(precision))
        model.build()
        optimizer = build_optimizer(**options)
        optimizer.build(model.trainable_variables)
        if precision == "float16":
            optimizer.scale_losses()
            optimizer.loss_scale.restore({"scale": 2.0**10, "finite_steps": 0})
        trainer, log = Trainer(model, accumulation_steps=accumulation_steps), StepLosses()
        trainer.compile(optimizer=optimizer, jit_compile=False)
    features, labels = linear_batch()
    labels[4:] *= 1e4 if spoil else 1
    dataset = tf.data.Dataset.from_tensor_slices((features, labels)).batch(8, drop_remainder=True).repeat(5)
    trainer.fit(dataset, callbacks=[log], verbose=0, shuffle=False)
    weights = [w.numpy().tolist() for w in model.trainable_variables]
    with optimizer.averaged_weights():
        averages = [w.numpy().tolist() for w in model.trainable_variables]
    scale = optimizer.loss_scale and optimizer.loss_scale.state()
    return {"losses": log.losses, "weights": weights, "averages": averages, "scale": scale}


def print_results_on_two_virtual_cpus():
    """Body of a process of its own: devices are split before TensorFlow starts."""
    split_cpu(2, "mirrored")
    strategy = make_strategy("mirrored")
    assert strategy.num_replicas_in_sync == 2
    results = {name: trained(strategy, *case) for name, case in CASES.items()}
    results["spoilt"] = trained(strategy, *CASES["float16"], spoil=True)
    print(json.dumps(results))


@pytest.fixture(scope="module")
def two_replicas():
    code = "from training.test_two_replicas import print_results_on_two_virtual_cpus as run; run()"
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join([tests, *filter(None, sys.path)])
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=280)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_two_replicas_equal_one(two_replicas, name):
    expected, received = trained(tf.distribute.get_strategy(), *CASES[name]), two_replicas[name]
    np.testing.assert_allclose(received["losses"], expected["losses"], rtol=2e-3 if name == "float16" else 1e-6)
    for what in ("weights", "averages"):
        for ours, theirs in zip(received[what], expected[what], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=5e-3 if name == "float16" else 1e-5, atol=1e-5)
    assert received["scale"] == expected["scale"]


def test_an_overflow_on_one_replica_skips_the_update_of_both(two_replicas):
    model = LinearModel()
    model.build()
    spoilt = two_replicas["spoilt"]
    assert len(set(spoilt["losses"])) == 1
    for ours, start in zip(spoilt["weights"], model.trainable_variables, strict=True):
        np.testing.assert_array_equal(ours, start.numpy())
    assert spoilt["scale"] == {"scale": 2.0**10 / 2**5, "finite_steps": 0}
