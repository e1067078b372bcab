"""LARS against a NumPy loop of the reference's update, and against the same in plain torch tensors."""

import keras
import numpy as np
import pytest

from keras_mae.training.lars import LARS
from keras_mae.training.schedules import WarmupCosine

SHAPES = [(3, 4), (4,), (2, 3, 5)]
SCHEDULE = WarmupCosine(0.4, total_steps=20, warmup_steps=5)


def starts_and_gradients():
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=shape).astype("float32") for shape in SHAPES]
    return starts, [rng.normal(size=(20, *shape)).astype("float32") for shape in SHAPES]


def trained(starts, gradients, compiled=False, **options):
    variables = [keras.Variable(start, name=f"kernel_{i}") for i, start in enumerate(starts)]
    optimizer = LARS(SCHEDULE, **options)
    optimizer.build(variables)
    if compiled:
        optimizer.compile_updates()
    for step_gradients in zip(*gradients, strict=True):
        optimizer.apply([keras.ops.convert_to_tensor(gradient) for gradient in step_gradients])
    return [v.numpy() for v in variables]


def numpy_lars(weight, gradients, decay):
    """The reference's update in float64: coefficient .001, momentum .9, the learning rate outside the momentum."""
    weight, momentum = weight.astype("float64"), 0.0
    for t, gradient in enumerate(gradients.astype("float64")):
        if weight.ndim > 1:
            gradient = gradient + decay * weight
            lengths = np.sqrt((weight**2).sum()), np.sqrt((gradient**2).sum())
            gradient = gradient * (0.001 * lengths[0] / lengths[1] if min(lengths) > 0 else 1.0)
        momentum = 0.9 * momentum + gradient
        weight = weight - float(SCHEDULE(t)) * momentum
    return weight


@pytest.mark.parametrize("compiled", [False, True])
def test_twenty_steps_equal_the_reference(compiled):
    starts, gradients = starts_and_gradients()
    results = trained(starts, gradients, compiled, weight_decay=0.3)
    for start, of_variable, result in zip(starts, gradients, results, strict=True):
        np.testing.assert_allclose(result, numpy_lars(start, of_variable, 0.3), rtol=2e-6, atol=1e-6)
        assert np.any(result != start)


def test_a_length_of_zero_means_no_scaling():
    zeros, ones = np.zeros((2, 2), "float32"), np.ones((2, 2), "float32")
    variables = [keras.Variable(start, name=f"kernel_{i}") for i, start in enumerate((zeros, ones))]
    LARS(0.5).apply([ones, zeros], variables)
    np.testing.assert_array_equal(variables[0].numpy(), -0.5 * ones)
    np.testing.assert_array_equal(variables[1].numpy(), ones)


@pytest.mark.parity
def test_twenty_steps_equal_torch():
    import torch

    starts, gradients = starts_and_gradients()
    results = trained(starts, gradients, weight_decay=0.3)
    for start, of_variable, result in zip(starts, gradients, results, strict=True):
        weight, momentum = torch.tensor(start), torch.zeros(start.shape)
        for t, gradient in enumerate(torch.tensor(of_variable)):
            if weight.ndim > 1:
                gradient = gradient.add(weight, alpha=0.3)
                lengths = torch.norm(weight), torch.norm(gradient)
                gradient = gradient.mul(0.001 * lengths[0] / lengths[1])
            momentum.mul_(0.9).add_(gradient)
            weight.add_(momentum, alpha=-float(SCHEDULE(t)))
        np.testing.assert_allclose(result, weight.numpy(), rtol=2e-6, atol=1e-6)
