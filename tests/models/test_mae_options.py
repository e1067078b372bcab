"""The masked autoencoder's choices (Table 1c, 1d, 1f, and the loss on all patches), alone and together."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_mae.layers.masking_kinds import make_masking
from keras_mae.layers.patches import patchify
from keras_mae.models import DiscreteVAE, MaskedAutoencoder, PCATarget, PixelTarget, TokenTarget, VisionTransformer
from keras_mae.models.decoder import Decoder
from keras_mae.training.adamw import AdamW
from keras_mae.training.trainer import Trainer

SIDE, PATCH, NUM_PATCHES, VALUES = 16, 4, 16, 16  # grey images, 4x4 patches of 4x4 pixels
ENCODER = {
    "image_size": SIDE,
    "patch_size": PATCH,
    "channels": 1,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "pixel_mean": 0.5,
    "pixel_std": 0.25,
}


@keras.saving.register_keras_serializable(package="tests")
class BrightnessTokens(keras.layers.Layer):
    """A patch's mean brightness as one of four tokens: a target that tests can compute, and that cannot be drawn."""

    num_values = 4

    def call(self, images, patches):
        pixels = patchify(ops.cast(images, "float32"), PATCH)  # (B, N, P*P*C)
        return ops.cast(ops.mean(pixels, axis=-1) // 64, "int32")  # (B, N)

    def patch_losses(self, prediction, target):
        return ops.sparse_categorical_crossentropy(target, prediction, from_logits=True)


def tokenizer():
    keras.utils.set_random_seed(0)
    model = DiscreteVAE(channels=1, num_codes=8, hidden_dim=4, blocks_per_group=1, code_dim=4)
    model.build()
    return model


def pca_target(num_values=5):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((VALUES, VALUES)))[0]
    return PCATarget(rng.uniform(-0.5, 0.5, VALUES), basis[:num_values])


OPTIONS = {
    "block": lambda: {"mask_kind": "block"},
    "grid": lambda: {"mask_kind": "grid"},
    "encoder mask tokens": lambda: {"encoder_mask_tokens": True},
    "loss on all patches": lambda: {"loss_on_all_patches": True},
    "plain pixels": lambda: {"norm_pix_loss": False},
    "pca": lambda: {"target": pca_target()},
    "grid and tokens": lambda: {"mask_kind": "grid", "target": TokenTarget(tokenizer())},
    "all others": lambda: {
        "mask_kind": "block",
        "encoder_mask_tokens": True,
        "loss_on_all_patches": True,
        "target": pca_target(),
    },
}
TOGETHER = ("grid and tokens", "all others")  # every choice is in one of them
ALONE_IS_SLOW = pytest.mark.parametrize(
    "option",
    [pytest.param(name, marks=() if name == "all others" else pytest.mark.slow) for name in OPTIONS],
)


def build(**options):
    keras.utils.set_random_seed(0)
    model = MaskedAutoencoder(VisionTransformer(**ENCODER), 16, 1, 2, seed=1, **options)
    model.build()
    return model


def batch(model, size=4, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, SIDE, SIDE, 1), dtype="uint8"),
        "noise": rng.random((size, model.num_draws), dtype="float32"),
    }


def removed_pixels(outputs):
    mask = np.asarray(outputs["mask"]).reshape(-1, SIDE // PATCH, SIDE // PATCH)
    return np.kron(mask, np.ones((1, PATCH, PATCH)))[..., None] == 1  # (B, H, W, 1)


@pytest.mark.parametrize("kind", ["random", "block", "grid"])
def test_the_mask_is_what_the_kind_makes_of_the_noise(kind):
    model = build(mask_kind=kind)
    features = batch(model)
    masking = make_masking(kind, 0.75, (4, 4), None)
    assert model.num_draws == masking.num_draws(NUM_PATCHES)
    _, _, mask = masking(np.zeros((4, NUM_PATCHES, 1)), noise=features["noise"])
    np.testing.assert_array_equal(model(features)["mask"], mask)
    assert np.asarray(mask).sum(axis=1).tolist() == 4 * [12]


@pytest.mark.parametrize("option", ["block", "grid", "encoder mask tokens"])
def test_prediction_knows_nothing_of_removed_patches_and_something_of_the_others(option):
    model = build(**OPTIONS[option]())
    features = batch(model)
    outputs = model(features)
    removed = removed_pixels(outputs)
    images = features["image"]
    other = {**features, "image": np.where(removed, 255 - images, images)}
    np.testing.assert_array_equal(model(other)["prediction"], outputs["prediction"])
    other = {**features, "image": np.where(removed, images, 255 - images)}
    assert np.abs(np.asarray(model(other)["prediction"]) - np.asarray(outputs["prediction"])).max() > 1e-3


def test_encoder_takes_mask_tokens_where_patches_are_removed():
    """A mask token equal to the embedding of a flat patch is the same as images that are flat where patches lack."""
    model = build(encoder_mask_tokens=True)
    features = batch(model)
    embedding = model.encoder.patch_embedding
    flat = np.full((1, 1, VALUES), (100 / 255 - 0.5) / 0.25, "float32")
    model.mask_token.assign(embedding(flat))
    outputs = model(features)
    shown = np.where(removed_pixels(outputs), 100, features["image"]).astype("uint8")
    assert outputs["latent"].shape == (4, 1 + NUM_PATCHES, 16)
    np.testing.assert_allclose(outputs["latent"], model.encoder(shown), atol=1e-5)


def test_decoder_without_mask_tokens_is_the_decoder_with_nothing_removed():
    with_tokens = Decoder((4, 4), 7, 16, 1, 2)
    without = Decoder((4, 4), 7, 16, 1, 2, mask_tokens=False)
    latent = np.random.default_rng(0).standard_normal((2, 1 + NUM_PATCHES, 12)).astype("float32")
    in_order = np.tile(np.arange(NUM_PATCHES, dtype="int32"), (2, 1))
    with_tokens.build(latent.shape), without.build(latent.shape)
    weights = {w.path.split("/", 1)[1]: w for w in with_tokens.weights}
    assert set(weights) - {w.path.split("/", 1)[1] for w in without.weights} == {"mask_token"}
    for weight in without.weights:
        weight.assign(weights[weight.path.split("/", 1)[1]])
    np.testing.assert_array_equal(without(latent), with_tokens(latent, in_order))


@pytest.mark.parametrize("option", ["encoder mask tokens", "pca", "grid and tokens"])
def test_gradients_reach_every_trained_weight(option):
    model = build(**OPTIONS[option]())
    features = batch(model)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(features, y_pred=model(features, training=True))
    for weight, gradient in zip(
        model.trainable_weights, tape.gradient(loss, [w.value for w in model.trainable_weights]), strict=True
    ):
        assert gradient is not None and np.abs(np.asarray(gradient)).max() > 0, weight.path


def test_loss_on_all_patches_is_the_mean_over_all():
    model = build(loss_on_all_patches=True, norm_pix_loss=False)
    features = batch(model)
    outputs = model(features)
    patches = np.asarray(model.encoder.normalized_patches(features["image"]))
    expected = ((np.asarray(outputs["prediction"]) - patches) ** 2).mean(axis=(1, 2))
    np.testing.assert_allclose(model.sample_losses(features, None, outputs), expected, rtol=1e-5)


def test_loss_of_tokens_is_their_cross_entropy_over_removed_patches():
    model = build(target=BrightnessTokens())
    features = batch(model)
    outputs = model(features)
    assert outputs["prediction"].shape == (4, NUM_PATCHES, 4)
    expected = []
    for image, logits, mask in zip(features["image"], outputs["prediction"], outputs["mask"], strict=True):
        losses = []
        for n in np.flatnonzero(mask):
            row, column = PATCH * (n // 4), PATCH * (n % 4)
            token = int(image[row : row + PATCH, column : column + PATCH].mean() // 64)
            shares = np.exp(np.asarray(logits[n], "float64"))
            losses.append(-np.log(shares[token] / shares.sum()))
        expected.append(np.mean(losses))
    np.testing.assert_allclose(model.sample_losses(features, None, outputs), expected, rtol=1e-5)


def test_all_coefficients_of_a_pca_cost_what_plain_pixels_cost():
    pixels, pca = build(norm_pix_loss=False), build(target=pca_target(VALUES))
    features = batch(pixels)
    outputs = pixels(features)
    patches = np.asarray(outputs["prediction"])
    coefficients = (patches - pca.target.mean) @ pca.target.components.T
    expected = pixels.sample_losses(features, None, outputs)
    rotated = {**outputs, "prediction": coefficients}
    np.testing.assert_allclose(pca.sample_losses(features, None, rotated), expected, rtol=1e-5)


def predict_nothing(model):
    model.decoder.prediction.kernel.assign(ops.zeros_like(model.decoder.prediction.kernel))


def test_pca_draws_what_its_coefficients_stand_for():
    model = build(target=pca_target())
    predict_nothing(model)  # coefficients 0: the mean patch
    features = batch(model)
    masked, reconstruction = (np.asarray(x) for x in model.reconstruct(features))
    removed = removed_pixels(model(features))
    mean_patch = np.round(255 * (model.target.mean * 0.25 + 0.5)).clip(0, 255).reshape(PATCH, PATCH)
    expected = np.where(removed, np.tile(mean_patch, (4, 4))[None, :, :, None], features["image"])
    np.testing.assert_array_equal(reconstruction, expected)
    np.testing.assert_array_equal(masked, np.where(removed, 128, features["image"]))


def test_normalised_pixels_are_drawn_with_the_statistics_of_the_true_patch():
    model = build()
    predict_nothing(model)  # the mean of each true patch
    features = batch(model)
    _, reconstruction = (np.asarray(x) for x in model.reconstruct(features))
    means = features["image"].reshape(4, 4, PATCH, 4, PATCH).mean(axis=(2, 4))
    expected = np.where(
        removed_pixels(model(features)), np.kron(means, np.ones((1, 4, 4)))[..., None], features["image"]
    )
    assert np.abs(reconstruction - expected).max() <= 0.51  # rounded


def test_a_target_that_cannot_be_drawn_says_so():
    model = build(target=BrightnessTokens())
    assert not model.can_reconstruct
    with pytest.raises(ValueError, match="BrightnessTokens has no method `to_patches`"):
        model.reconstruct(batch(model))


REFUSED = {
    "unknown kind": ({"mask_kind": "stripes"}, "must be one of random, block, grid. Received: 'stripes'"),
    "grid of another ratio": ({"mask_kind": "grid", "mask_ratio": 0.5}, "mask_ratio must be 0.75"),
    "a target's name": ({"target": "pca"}, "target must be a target layer .* Received: 'pca'"),
    "no target": ({"target": keras.layers.Identity()}, "target must be a target layer"),
    "pixels of other patches": ({"target": PixelTarget(48)}, "num_values=48 pixels. Received: 16"),
    "pca of other patches": ({"target": PCATarget(np.zeros(3), np.eye(3))}, "Expected patches of pixels of 3 values"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    options, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence):
        build(**options)


def test_tokens_of_another_grid_are_refused():
    class HalfAsMany(BrightnessTokens):
        def call(self, images, patches):
            return super().call(images, patches)[:, ::2]

    with pytest.raises(ValueError, match=r"one target for each of the encoder's 16 patches.*shape \(1, 8\)"):
        build(target=HalfAsMany())


def test_the_weights_of_a_target_are_never_trained():
    class Weighted(BrightnessTokens):
        def build(self, images_shape, patches_shape):
            self.scale = self.add_weight(shape=())

    model = build(target=Weighted())
    assert len(model.weights) == len(model.trainable_weights) + 2 + 1  # the position tables
    assert not any(weight is model.target.scale for weight in model.trainable_weights)


def test_noise_of_another_kind_of_mask_is_refused():
    model = build(mask_kind="block")
    with pytest.raises(ValueError, match="`noise` must have the 144 draws"):
        model({"image": np.zeros((2, SIDE, SIDE, 1), "uint8"), "noise": np.zeros((2, NUM_PATCHES), "float32")})


@ALONE_IS_SLOW
def test_saved_and_loaded_it_predicts_and_costs_the_same(option, tmp_path):
    model = build(**OPTIONS[option]())
    config = model.get_config()
    json.dumps(config)
    assert MaskedAutoencoder.from_config(config).get_config() == config
    model.save(tmp_path / "mae.keras")
    loaded = keras.models.load_model(tmp_path / "mae.keras")
    features = batch(model)
    outputs, again = model(features), loaded(features)
    np.testing.assert_array_equal(again["prediction"], outputs["prediction"])
    np.testing.assert_array_equal(
        loaded.sample_losses(features, None, again), model.sample_losses(features, None, outputs)
    )


class StepLosses(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))


def fitted_losses(option, jit_compile):
    model = build(**OPTIONS[option]())
    model.compile(keras.optimizers.SGD(0.1), jit_compile=jit_compile)
    data = tf.data.Dataset.from_tensors(batch(model, 8)).repeat(4)
    return model.fit(data, epochs=2, verbose=0, shuffle=False).history["loss"]


def test_all_choices_together_fit():
    losses = fitted_losses("all others", jit_compile=False)
    assert losses[1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_fits_with_and_without_xla_alike(option):
    plain, compiled = (fitted_losses(option, jit_compile) for jit_compile in (False, True))
    assert plain[1] < plain[0]
    np.testing.assert_allclose(compiled, plain, rtol=1e-4)


def trained_losses(option, strategy):
    """Losses of four steps on one batch, by `Trainer` as the commands use it."""
    with strategy.scope():
        model = build(**OPTIONS[option]())
        trainer = Trainer(model)
        optimizer = AdamW(1e-3)
        optimizer.build(model.trainable_variables)  # in the scope, as training.run does
        trainer.compile(optimizer=optimizer, jit_compile=False)
    data = tf.data.Dataset.from_tensors(batch(model, 8)).repeat(4).unbatch().batch(8, drop_remainder=True)
    log = StepLosses()
    trainer.fit(data, callbacks=[log], verbose=0, shuffle=False)
    return log.losses


def print_losses_on_two_virtual_cpus():
    """Body of a process of its own: devices are split before TensorFlow starts."""
    from keras_mae.training.strategy import make_strategy, split_cpu

    split_cpu(2, "mirrored")
    strategy = make_strategy("mirrored")
    assert strategy.num_replicas_in_sync == 2
    print(json.dumps({option: trained_losses(option, strategy) for option in TOGETHER}))


@pytest.mark.slow
def test_two_replicas_train_as_one():
    code = "from models.test_mae_options import print_losses_on_two_virtual_cpus as run; run()"
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join([tests, *filter(None, sys.path)])
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=280)
    assert process.returncode == 0, process.stderr[-3000:]
    mirrored = json.loads(process.stdout.splitlines()[-1])
    for option in TOGETHER:
        losses = trained_losses(option, tf.distribute.get_strategy())
        assert losses[-1] < losses[0]
        np.testing.assert_allclose(mirrored[option], losses, rtol=1e-4, err_msg=option)
