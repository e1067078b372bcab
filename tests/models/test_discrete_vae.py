import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.commands import run_command
from fixtures.shard_sets import encode

from keras_mae import pretrain_tokenizer
from keras_mae.models.discrete_vae import (
    DiscreteVAE,
    divergences_from_uniform,
    gumbel_noise,
    logit_laplace_losses,
)
from keras_mae.models.token_networks import convolution, squeezed_pixels
from keras_mae.recipes import peak_learning_rate, total_steps
from keras_mae.recipes.tokenizer import TOKENIZER_RECIPES
from keras_mae.training.metrics_log import read_rows
from keras_mae.training.step_log import StepLog

TINY = {"channels": 1, "num_codes": 8, "hidden_dim": 4, "blocks_per_group": 1}


def build(dtype="float32", **sizes):
    model = DiscreteVAE(**{**TINY, "code_dim": 4, "seed": 0, **sizes}, dtype=dtype)
    model.build()
    return model


@pytest.fixture(scope="module")
def model():
    """For tests that change nothing of it."""
    keras.utils.set_random_seed(0)
    return build()


def images(batch=4, side=16):
    """Pictures of flat squares of 8 x 8 pixels, dark or light: a code a square says it all."""
    squares = np.random.randint(0, 2, (batch, side // 8, side // 8, 1))
    return (200 * squares).repeat(8, axis=1).repeat(8, axis=2).astype("uint8")


def uniform(*shape):
    return np.random.default_rng(1).random(shape, dtype="float32")


def test_pixels_are_squeezed_as_published():
    np.testing.assert_allclose(squeezed_pixels(np.array([0, 51, 255], "uint8")), [0.1, 0.26, 0.9], rtol=1e-6)


def test_gumbel_noise_has_its_distribution():
    noise = np.asarray(gumbel_noise(uniform(4, 2), (8, 8, 1000))).ravel()
    # P(noise <= x) = exp(-exp(-x)); at 256,000 values an empirical distribution is .003 off at most.
    x = np.sort(noise)
    difference = np.exp(-np.exp(-x)) - np.arange(1, len(x) + 1) / len(x)
    assert np.abs(difference).max() < 0.003
    assert len(np.unique(noise)) > 0.97 * len(noise)  # of 2^23 possible values


def test_gumbel_noise_of_neighbouring_draws_is_independent():
    # Pairs one step of 2^-23 apart in either draw
    draws = np.array([[0.5, 0.25], [0.5 + 2**-23, 0.25], [0.5, 0.25 + 2**-23], [0.25, 0.5]], "float32")
    noise = np.asarray(gumbel_noise(draws, (8, 8, 1000))).reshape(4, -1)
    assert np.abs(np.corrcoef(noise) - np.eye(4)).max() < 0.02  # deviation of 64,000 pairs: .004
    shifted = np.corrcoef(noise[0, 1:], noise[0, :-1])[0, 1]
    assert abs(shifted) < 0.02


def test_gumbel_noise_is_a_function_of_the_samples_own_draws():
    draws = uniform(4, 2)
    noise = np.asarray(gumbel_noise(draws, (2, 3, 5)))
    np.testing.assert_allclose(gumbel_noise(draws[2:3], (2, 3, 5))[0], noise[2], rtol=1e-6)
    compiled = tf.function(lambda x: gumbel_noise(x, (2, 3, 5)), jit_compile=True)
    np.testing.assert_allclose(compiled(draws), noise, rtol=1e-5, atol=1e-6)


def test_perturbed_scores_pick_codes_as_often_as_softmax_says():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    noise = np.asarray(gumbel_noise(uniform(20, 2), (50, 20, 4)))
    picked = (np.log(probabilities) + noise).argmax(axis=-1)
    frequencies = np.bincount(picked.ravel(), minlength=4) / picked.size
    np.testing.assert_allclose(frequencies, probabilities, atol=0.015)  # deviation of 20,000 picks: .0035


def test_relaxed_codes_are_distributions_that_sharpen_as_the_temperature_falls():
    scores, draws = uniform(2, 3, 3, 8), uniform(2, 2)
    warm, cold = (np.asarray(DiscreteVAE(**TINY, temperature=t).relaxed_codes(scores, draws)) for t in (1.0, 0.01))
    np.testing.assert_allclose(warm.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(warm.argmax(axis=-1), cold.argmax(axis=-1))
    assert warm.max(axis=-1).mean() < 0.8 and cold.max(axis=-1).mean() > 0.95


def test_training_follows_the_noise_and_without_it_every_call_differs(model):
    x = images()
    features = {"image": x, "code_noise": uniform(4, 2)}
    one, two = (np.asarray(model(features, training=True)["pixels"]) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    last = {name: value[3:] for name, value in features.items()}
    np.testing.assert_allclose(model(last, training=True)["pixels"][0], one[3], atol=1e-5)
    one, two = (np.asarray(model(x, training=True)["pixels"]) for _ in range(2))
    assert np.abs(one - two).max() > 1e-3


def test_evaluation_draws_the_likeliest_codes(model):
    x = images()
    outputs = model({"image": x, "code_noise": uniform(4, 2)})
    codes = np.asarray(outputs["scores"]).argmax(axis=-1)
    np.testing.assert_array_equal(model.encoder.codes(x), codes)
    np.testing.assert_array_equal(outputs["pixels"], model.decoder(np.eye(8, dtype="float32")[codes]))


def test_logit_laplace_is_a_density():
    x = (np.arange(20000) + 0.5) / 20000
    values = ((x - 0.1) / 0.8 * 255).reshape(1, -1, 1, 1)
    for mean, log_scale in ((0.0, 0.0), (1.5, -2.0)):
        distribution = np.broadcast_to([mean, log_scale], (1, 20000, 1, 2)).astype("float32")
        density = np.exp(-np.asarray(logit_laplace_losses(values, distribution)).ravel())
        assert density.mean() == pytest.approx(1, abs=0.01)
        logit = np.log(x / (1 - x))
        assert (density * (logit < mean)).mean() == pytest.approx(0.5, abs=0.01)


def test_flat_pictures_cannot_drive_the_loss_to_infinity():
    x = np.full((1, 1, 1, 1), 127.5)
    losses = [float(logit_laplace_losses(x, np.array([[[[0.0, s]]]], "float32"))[0, 0, 0, 0]) for s in (-5, -50)]
    assert losses[0] == losses[1]


def test_divergence_from_uniform_against_a_loop():
    scores = 3 * uniform(2, 1, 2, 5) - 1
    result = np.asarray(divergences_from_uniform(scores))
    for index in np.ndindex(2, 1, 2):
        p = [math.exp(s) for s in scores[index]]
        p = [v / sum(p) for v in p]
        assert result[index] == pytest.approx(sum(v * math.log(v * 5) for v in p), rel=1e-4)
    assert float(divergences_from_uniform(np.array([[100.0, 0, 0, 0]]))[0]) == pytest.approx(math.log(4))


def test_loss_is_the_bound_over_the_image_divided_by_its_values(model):
    x = images(3)
    outputs = model(x)
    nats = np.asarray(logit_laplace_losses(x, outputs["pixels"])).sum(axis=(1, 2, 3))
    kl = np.asarray(divergences_from_uniform(outputs["scores"])).sum(axis=(1, 2))
    np.testing.assert_allclose(model.sample_losses(x, None, outputs), (nats + 6.6 * kl) / (16 * 16), rtol=1e-5)
    weights = np.array([1.0, 0.0, 0.0], "float32")
    loss = model.compute_loss(x, y_pred=outputs, sample_weight=weights)
    np.testing.assert_allclose(loss, (nats[0] + 6.6 * kl[0]) / (16 * 16), rtol=1e-5)


def test_temperature_and_kl_weight_follow_the_optimizer():
    model, optimizer = build(), keras.optimizers.SGD()
    assert model.training_weights() == (1.0, 6.6)
    recipe = TOKENIZER_RECIPES["dvae"]
    steps = total_steps(recipe, samples=1_281_167)
    optimizer = pretrain_tokenizer.build_optimizer(model, 1e-3, recipe, steps)
    found = []
    for step in (0, 2502, 75067, 150137, steps):
        optimizer.iterations.assign(step)
        found.append([float(value) for value in model.training_weights()])
    # Half a cosine from 1 to 1/16 over 150,000 updates, KL weight linear over 5,000; 1% off for the rounded shares
    expected = [[1, 0], [1, 3.3], [(1 + 1 / 16) / 2, 6.6], [1 / 16, 6.6], [1 / 16, 6.6]]
    np.testing.assert_allclose(found, expected, rtol=0.01)


def test_recipe_is_as_published():
    recipe = TOKENIZER_RECIPES["dvae"]
    assert peak_learning_rate(recipe) == pytest.approx(1e-4)
    assert (recipe.batch_size, recipe.min_learning_rate, recipe.weight_decay) == (512, 1.25e-6, 1e-4)
    assert (recipe.beta_1, recipe.beta_2, recipe.kl_weight, recipe.min_temperature) == (0.9, 0.999, 6.6, 1 / 16)
    assert (recipe.num_codes, recipe.hidden_dim, recipe.blocks_per_group, recipe.code_dim) == (8192, 256, 2, 128)


def test_kernels_start_with_variance_one_over_fan_in():
    layer = convolution(64, 3, "c", "float32")
    layer.build((None, None, None, 32))
    assert np.std(layer.kernel) == pytest.approx(1 / math.sqrt(32 * 9), rel=0.03)
    assert np.abs(layer.kernel).max() > 3 / math.sqrt(32 * 9)  # not truncated


def test_mixed_bfloat16_keeps_weights_and_scores_in_float32(model):
    mixed, x = build("mixed_bfloat16"), images()
    mixed.set_weights(model.get_weights())
    outputs = mixed(x, training=True)
    assert {weight.dtype for weight in mixed.weights} == {"float32"}
    assert {keras.backend.standardize_dtype(value.dtype) for value in outputs.values()} == {"float32"}
    np.testing.assert_allclose(outputs["scores"], model(x)["scores"], atol=0.1)


@pytest.mark.parametrize("shape", [(2, 12, 16, 1), (2, 16, 16, 3)])
def test_image_that_does_not_fit_is_an_error(model, shape):
    with pytest.raises(ValueError, match=r"1 channel\(s\), height and width divisible by 8. Received: \(batch, "):
        model(np.zeros(shape, "uint8"))


def test_width_that_is_no_multiple_of_four_is_an_error():
    with pytest.raises(ValueError, match="multiple of 4. Received: dim=6"):
        build(hidden_dim=6)


def test_fits_a_plain_uint8_array_and_saves(tmp_path):
    model, x = build(), images(16)
    model.compile(keras.optimizers.SGD(0.2), run_eagerly=True)  # tracing takes longer
    losses = model.fit(x, batch_size=16, epochs=4, verbose=0, shuffle=False).history["loss"]
    assert losses[-1] < losses[0] - 0.05
    model.save(tmp_path / "tokenizer.keras")
    loaded = pretrain_tokenizer.load_tokenizer(tmp_path)
    np.testing.assert_array_equal(loaded.encoder.codes(x), model.encoder.codes(x))
    np.testing.assert_array_equal(loaded.reconstruct(x), model.reconstruct(x))


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no tokenizer at"):
        pretrain_tokenizer.load_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.keras"
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match="cannot be loaded"):
        pretrain_tokenizer.load_tokenizer(path)


@pytest.fixture(scope="module")
def squares_set(tmp_path_factory):
    """Shard set of 40 pictures of squares, and nothing held out."""
    from pipeline.sources import FolderSource
    from tools.shard_plan import ShardOptions
    from tools.sharding import make_shards

    folder = tmp_path_factory.mktemp("squares")
    np.random.seed(0)
    for number, image in enumerate(images(40)):
        path = folder / "images" / "squares" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image[..., 0]))
    make_shards(FolderSource(str(folder / "images")), folder / "shards", ShardOptions(), workers=1, log=str)
    return str(folder / "shards")


TINY_RUN = (
    *("--recipe=dvae_small", "--image_size=16", "--resize_size=16", "--channels=1", "--num_codes=8", "--hidden_dim=4"),
    *("--blocks_per_group=1", "--code_dim=4", "--batch_size=8", "--base_learning_rate=.3", "--min_area=1", "--noflip"),
    *("--steps=8", "--log_every_steps=1", "--checkpoint_every_steps=4", "--deterministic=false"),
)


@pytest.mark.slow
def test_the_command_trains_exports_and_goes_on_to_the_same_losses(squares_set, tmp_path, monkeypatch):
    def command(name):
        return run_command(pretrain_tokenizer, *TINY_RUN, f"--data={squares_set}", f"--run_dir={tmp_path / name}")

    def losses(name):
        return [row["loss"] for row in read_rows(tmp_path / name / "metrics.jsonl") if "loss" in row]

    def stop(self, logs):
        after_step(self, logs)
        if self.step == 5:
            raise KeyboardInterrupt

    assert command("whole") == 0
    assert np.mean(losses("whole")[-3:]) < losses("whole")[0] - 0.1
    assert [path.name for path in (tmp_path / "whole/export").iterdir()] == ["tokenizer.keras"]
    tokenizer = pretrain_tokenizer.load_tokenizer(tmp_path / "whole")
    assert (tokenizer.num_codes, tokenizer.temperature) == (8, 1 / 16)
    after_step = StepLog.after_step
    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "after_step", stop)
        assert command("stopped") == 130
    assert len(losses("stopped")) == 5
    assert command("stopped") == 0
    assert losses("stopped") == losses("whole")


REFUSED = {
    "recipe": (("--recipe=vit_base",), "Unknown recipe. Expected one of: dvae_small, dvae"),
    "image size": (("--image_size=20", "--resize_size=20"), "image_size must be a multiple of 8 pixels. Received: 20"),
    "width": (("--hidden_dim=6",), "hidden_dim must be a multiple of 4"),
    "temperature": (("--min_temperature=2",), "The temperature must stay above 0 and may not grow"),
    "kl weight": (("--kl_weight=-1",), "kl_weight must be at least 0"),
    "share": (("--temperature_share=2",), "temperature_share must be at least 0 and at most 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_command_refuses(name, tmp_path, capsys):
    flags, sentence = REFUSED[name]
    run_dir = tmp_path / "run"
    assert run_command(pretrain_tokenizer, *TINY_RUN, f"--data={tmp_path}", f"--run_dir={run_dir}", *flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error
    assert not run_dir.exists()


def test_flags_of_the_vit_are_unknown():
    names = {field for field in vars(TOKENIZER_RECIPES["dvae"])}
    assert not names & {"patch_size", "pixel_mean", "pixel_std", "embed_dim", "depth", "num_heads", "remat"}
