"""AdamW against a NumPy loop of PyTorch's documented update; decay groups, layer-wise rates, clipping, saving."""

import keras
import numpy as np
import pytest
from fixtures.tiny_vit import TINY_VIT

from keras_mae.models import Classifier, VisionTransformer
from keras_mae.training.adamw import AdamW
from keras_mae.training.lars import LARS
from keras_mae.training.layer_decay import layer_decay_scales
from keras_mae.training.schedules import WarmupCosine


def numpy_adamw(weight, gradients, rates, decay, beta_1, beta_2, epsilon=1e-8):
    """torch.optim.AdamW, line by line as its documentation writes it, in float64."""
    weight, m, v = weight.astype("float64"), 0.0, 0.0
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        weight = weight - rate * decay * weight
        m = beta_1 * m + (1 - beta_1) * gradient
        v = beta_2 * v + (1 - beta_2) * gradient**2
        weight = weight - rate * (m / (1 - beta_1**t)) / (np.sqrt(v / (1 - beta_2**t)) + epsilon)
    return weight


@pytest.mark.parametrize(("shape", "decay"), [((3, 4), 0.3), ((4,), 0.0)])
def test_twenty_steps_equal_torch(shape, decay):
    rng = np.random.default_rng(0)
    start = rng.normal(size=shape).astype("float32")
    gradients = rng.normal(size=(20, *shape)).astype("float32") * 1e-3
    schedule = WarmupCosine(0.1, total_steps=20, warmup_steps=5)
    variable = keras.Variable(start, name="kernel")
    optimizer = AdamW(schedule, weight_decay=0.3, beta_1=0.9, beta_2=0.95)
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    rates = [float(schedule(t)) for t in range(20)]
    expected = numpy_adamw(start, gradients, rates, decay, 0.9, 0.95)
    np.testing.assert_allclose(variable.numpy(), expected, rtol=2e-5, atol=2e-6)


def test_decay_groups_survive_the_config_round_trip():
    variables = [keras.Variable(np.ones((2, 2)), name=name) for name in ("class_token", "kernel")]
    optimizer = AdamW(1.0, weight_decay=0.5, no_decay=("class_token",))
    optimizer = AdamW.from_config(optimizer.get_config())
    optimizer.apply([np.zeros((2, 2), "float32")] * 2, variables)
    np.testing.assert_allclose(variables[0].numpy(), 1.0)
    np.testing.assert_allclose(variables[1].numpy(), 0.5)


def test_a_name_that_fits_no_variable_is_refused():
    with pytest.raises(ValueError, match="misspelt"):
        AdamW(1.0, no_decay=("misspelt",)).build([keras.Variable(np.ones((2, 2)), name="kernel")])


def test_learning_rate_scales_must_name_every_variable():
    variable = keras.Variable(np.ones((2, 2)), name="kernel")
    with pytest.raises(ValueError, match="exactly the trained variables"):
        AdamW(1.0, learning_rate_scales={"other": 0.5}).build([variable])


def test_a_scale_may_name_the_end_of_a_path_unless_it_fits_two():
    with keras.name_scope("model"):
        variables = [keras.Variable(np.ones((2, 2)), name=name) for name in ("low", "high")]
    optimizer = AdamW(0.1, learning_rate_scales={"low": 0.5, "outer/model/high": 0.25})
    optimizer.apply([np.ones((2, 2), "float32")] * 2, variables)
    moved = [1 - float(v.numpy()[0, 0]) for v in variables]
    assert moved[0] == pytest.approx(2 * moved[1], rel=1e-4)
    with keras.name_scope("other"):
        variables.append(keras.Variable(np.ones((2, 2)), name="low"))
    with pytest.raises(ValueError, match="differing: .'model/low', 'other/low'."):
        AdamW(0.1, learning_rate_scales={"low": 0.5, "high": 0.25}).build(variables)


def test_layer_decay_scales_follow_the_depth():
    classifier = Classifier(VisionTransformer(**TINY_VIT, final_norm=False), num_classes=2)
    classifier.build()
    scales = layer_decay_scales(classifier, 0.5)
    assert set(scales) == {v.path for v in classifier.trainable_variables}
    depth = 2
    for path, scale in scales.items():
        layer = 0
        if "block_" in path:
            layer = int(path.split("block_")[1][0]) + 1
        elif not path.startswith("classifier/encoder/"):
            layer = depth + 1
        assert scale == 0.5 ** (depth + 1 - layer), path
    assert scales["classifier/encoder/class_token"] == 0.125
    assert scales["classifier/head/kernel"] == 1.0


def test_the_scale_acts_on_step_and_decay():
    variables = [keras.Variable(np.ones((2, 2)), name=name) for name in ("low", "high")]
    scales = {v.path: s for v, s in zip(variables, (0.1, 1.0), strict=True)}
    AdamW(0.1, weight_decay=0.5, learning_rate_scales=scales).apply([np.ones((2, 2), "float32")] * 2, variables)
    moved = [1 - float(v.numpy()[0, 0]) for v in variables]
    assert moved[0] == pytest.approx(0.1 * moved[1], rel=1e-4)


def test_compiled_updates_equal_plain_ones():
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=shape).astype("float32") for shape in [(3, 4), (4,), (3, 4)]]
    results = []
    for compiled in (False, True):
        variables = [keras.Variable(start, name=f"kernel_{i}") for i, start in enumerate(starts)]
        optimizer = AdamW(
            WarmupCosine(0.1, total_steps=20, warmup_steps=5),
            learning_rate_scales={v.path: scale for v, scale in zip(variables, (0.5, 1.0, 2.0), strict=True)},
        )
        optimizer.build(variables)
        if compiled:
            optimizer.compile_updates()
        gradients = np.random.default_rng(1)
        for _ in range(5):
            optimizer.apply([keras.ops.convert_to_tensor(gradients.normal(size=v.shape), "float32") for v in variables])
        results.append([v.numpy() for v in (*variables, *optimizer.variables)])
    for ours, expected, start in zip(*results, starts + [None] * len(results[0]), strict=False):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
        assert start is None or np.all(ours != start)


@pytest.mark.parametrize(
    "optimizer",
    [
        AdamW(
            WarmupCosine(0.1, total_steps=10, warmup_steps=2),
            weight_decay=0.5,
            no_decay=("low/kernel",),
            learning_rate_scales={"net/low/kernel": 0.1, "net/low/bias": 0.2, "net/high/kernel": 1, "net/high/bias": 1},
            ema_decay=0.5,
        ),
        LARS(WarmupCosine(50.0, total_steps=10, warmup_steps=2), weight_decay=0.5, global_clipnorm=0.1),
    ],
    ids=["adamw", "lars"],
)
def test_a_saved_optimizer_goes_on_as_the_original(optimizer, tmp_path):
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(8, 4)).astype("float32"), rng.normal(size=(8, 2)).astype("float32")
    layers = [keras.Input((4,)), keras.layers.Dense(3, name="low"), keras.layers.Dense(2, name="high")]
    model = keras.Sequential(layers, name="net")
    model.compile(optimizer=optimizer, loss="mse", run_eagerly=True)
    for _ in range(3):
        model.train_on_batch(*batch)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    for each in (model, loaded):
        each.train_on_batch(*batch)
    for ours, expected in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), expected.numpy())
    for ours, expected in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), expected.numpy())


def test_clipping_is_by_the_length_of_all_gradients_together():
    variables = [keras.Variable(np.zeros(2), name=name) for name in ("a", "b")]
    gradients = [np.array([2.0, 0.0], "float32"), np.array([0.0, 4.0], "float32")]  # length sqrt(20)
    LARS(1.0, global_clipnorm=1.0).apply(gradients, variables)  # of one dimension: plain SGD
    for variable, gradient in zip(variables, gradients, strict=True):
        np.testing.assert_allclose(variable.numpy(), -gradient / np.sqrt(20), rtol=1e-6)
    LARS(1.0, global_clipnorm=10.0, name="loose").apply(gradients, variables)
    np.testing.assert_allclose(variables[1].numpy(), [0, -4 / np.sqrt(20) - 4], rtol=1e-6)
