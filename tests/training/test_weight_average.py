"""Averages of weights: their arithmetic, that they are used for evaluation and export alone, and that they resume."""

import keras
import numpy as np
import pytest
from fixtures.linear_model import linear_batch
from fixtures.linear_run import interrupt, train, values

from keras_mae.training.adamw import AdamW
from keras_mae.training.lars import LARS


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("build", [AdamW, LARS])
def test_averages_equal_a_numpy_loop(build, compiled):
    rng = np.random.default_rng(0)
    variables = [keras.Variable(rng.normal(size=shape), name=f"kernel_{i}") for i, shape in enumerate([(2, 3), (3,)])]
    optimizer = build(0.1, ema_decay=0.8)
    optimizer.build(variables)
    if compiled:
        optimizer.compile_updates()
    averages = [None, None]
    for step in range(5):
        optimizer.apply([keras.ops.convert_to_tensor(rng.normal(size=v.shape), "float32") for v in variables])
        for i, v in enumerate(variables):
            averages[i] = v.numpy() if step == 0 else 0.8 * averages[i] + 0.2 * v.numpy()
    weights = [v.numpy() for v in variables]
    with optimizer.averaged_weights():
        for v, expected in zip(variables, averages, strict=True):
            np.testing.assert_allclose(v.numpy(), expected, rtol=1e-6)
    for v, expected, average in zip(variables, weights, averages, strict=True):
        np.testing.assert_array_equal(v.numpy(), expected)
        assert np.all(expected != average)


def test_the_weights_come_back_after_an_error():
    variable = keras.Variable(np.ones((2, 2)), name="kernel")
    optimizer = AdamW(0.1, ema_decay=0.5)
    for _ in range(2):
        optimizer.apply([np.ones((2, 2), "float32")], [variable])
    before = variable.numpy()
    with pytest.raises(KeyboardInterrupt), optimizer.averaged_weights():
        assert np.all(variable.numpy() != before)
        raise KeyboardInterrupt
    np.testing.assert_array_equal(variable.numpy(), before)


def loss_of(weights):
    features, labels = linear_batch(seed=1)
    outputs = (features["image"] * (features["noise"] > 0.5)) @ weights[0] + weights[1]
    return np.mean((outputs - labels) ** 2)


def test_a_run_evaluates_and_exports_averages_and_trains_on(tmp_path):
    rows, exported = train(tmp_path / "averaged", ema_decay=0.5)
    plain_rows, plain = train(tmp_path / "plain")
    assert values(rows, "loss") == values(plain_rows, "loss")
    assert values(rows, "val_loss")[-1] == pytest.approx(loss_of(exported), rel=1e-5)
    assert values(plain_rows, "val_loss")[-1] == pytest.approx(loss_of(plain), rel=1e-5)
    assert np.all(exported[0] != plain[0])


def test_an_interrupted_run_goes_on_with_its_averages(tmp_path):
    fields = {"ema_decay": 0.9, "clip_global_norm": 0.5, "accumulation_steps": 2}
    rows, exported = train(tmp_path / "whole", **fields)
    assert len(values(interrupt(tmp_path / "parts", **fields), "loss")) == 3
    resumed_rows, resumed = train(tmp_path / "parts", **fields)
    for name in ("loss", "val_loss"):
        assert values(resumed_rows, name) == values(rows, name)
    for ours, expected in zip(resumed, exported, strict=True):
        np.testing.assert_array_equal(ours, expected)
