import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_mae.layers.patches import patchify
from keras_mae.models.discrete_vae import DiscreteVAE
from keras_mae.models.token_networks import TokenEncoder
from keras_mae.models.token_target import TokenTarget, resize_images, resize_matrix


@pytest.fixture(scope="module")
def target():
    keras.utils.set_random_seed(0)
    tokenizer = TokenEncoder(channels=3, num_codes=16, hidden_dim=4, blocks_per_group=1)
    scores = tokenizer(flat_patches(4, 4, 4, 8))
    tokenizer.code_scores.bias.assign(-np.mean(scores, axis=(0, 1, 2)))  # so that no code is preferred
    return TokenTarget(tokenizer)


def images(*shape):
    return np.random.default_rng(2).integers(0, 256, shape, dtype="uint8")


def flat_patches(batch, rows, columns, patch_size):
    """Images of patches of one colour each: to a network with new weights all noise would be the same."""
    return images(batch, rows, columns, 3).repeat(patch_size, axis=1).repeat(patch_size, axis=2)


def patches(x, patch_size):
    return np.asarray(patchify(x.astype("float32") / 255, patch_size))


@pytest.mark.parametrize("sizes", [((32, 48), (16, 24)), ((30, 20), (16, 8)), ((14, 7), (28, 14)), ((8, 8), (8, 8))])
def test_resizing_equals_tensorflows_antialiased_bilinear(sizes):
    size, new_size = sizes
    x = images(2, *size, 3)
    expected = tf.image.resize(x, new_size, method="bilinear", antialias=True)
    np.testing.assert_allclose(resize_images(x, new_size), expected, atol=1e-3)


def test_resizing_equals_pillows():
    x = np.random.default_rng(0).uniform(0, 255, (40, 28)).astype("float32")
    expected = np.asarray(Image.fromarray(x).resize((16, 24), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(resize_images(x[None, :, :, None], (24, 16))[0, :, :, 0], expected, atol=1e-3)


def test_weights_of_halving_by_hand():
    # Triangle of half-width 2 around 1.5 for the second of four: 1.5, .5, .5, 1.5 pixels away.
    np.testing.assert_allclose(resize_matrix(8, 4)[1], [0, 0.125, 0.375, 0.375, 0.125, 0, 0, 0])
    np.testing.assert_allclose(resize_matrix(8, 4)[0, :3] * 7, [3, 3, 1], rtol=1e-6)  # the edge takes what is there


@pytest.mark.parametrize("patch_size", [4, 8, 16])
def test_one_code_falls_on_each_patch(target, patch_size):
    x = flat_patches(2, 2, 3, patch_size)
    codes = np.asarray(target(x, patches(x, patch_size)))
    assert codes.shape == (2, 6) and codes.dtype == np.int32
    expected = target.tokenizer.codes(tf.image.resize(x, (16, 24), method="bilinear", antialias=True))
    np.testing.assert_array_equal(codes.reshape(2, 2, 3), expected)
    assert len(np.unique(codes)) > 2


def test_16_bits_mean_what_8_bits_mean(target):
    x = flat_patches(2, 2, 3, 16)
    codes = np.asarray(target(x, patches(x, 16)))
    assert len(np.unique(codes)) > 2
    np.testing.assert_array_equal(target(x.astype("uint16") * 257, patches(x, 16)), codes)  # 65535 / 255


def test_codes_stand_at_their_own_patches(target):
    # Changed at the right end, an image keeps its codes on the left, further than the network can see.
    x = flat_patches(1, 1, 32, 8)
    changed = x.copy()
    changed[:, :, 192:] = 255 - x[:, :, 192:]
    one, two = (np.asarray(target(image, patches(image, 8)))[0] for image in (x, changed))
    assert np.any(one[24:] != two[24:])
    np.testing.assert_array_equal(one[:12], two[:12])


def test_cross_entropy_against_a_loop(target):
    prediction = np.random.default_rng(0).normal(size=(2, 3, 16)).astype("float32")
    codes = np.array([[0, 5, 15], [3, 3, 7]], "int32")
    losses = np.asarray(target.patch_losses(prediction, codes))
    for b in range(2):
        for n in range(3):
            scores = prediction[b, n].astype("float64")
            expected = np.log(np.exp(scores).sum()) - scores[codes[b, n]]
            assert losses[b, n] == pytest.approx(expected, rel=1e-5)
    assert keras.backend.standardize_dtype(target.patch_losses(prediction.astype("float16"), codes).dtype) == "float32"


def test_guessing_costs_log_of_the_codes(target):
    losses = target.patch_losses(np.zeros((1, 2, 16), "float32"), np.array([[3, 9]], "int32"))
    np.testing.assert_allclose(losses, np.log(16) * np.ones((1, 2)), rtol=1e-6)


def test_it_is_never_trained(target):
    x = images(1, 16, 16, 3)
    head = tf.Variable(np.zeros((192, 16), "float32"))
    with tf.GradientTape() as tape:
        values = patches(x, 8)
        loss = tf.reduce_sum(target.patch_losses(values @ head, target(x, values)))
    weights = [weight.value for weight in target.weights]
    gradients = tape.gradient(loss, [head, *weights])
    assert target.trainable_weights == [] and len(weights) > 0
    assert np.abs(gradients[0]).max() > 0
    assert gradients[1:] == [None] * len(weights)


def test_compiled_by_xla_the_codes_are_the_same(target):
    x = flat_patches(8, 2, 3, 16)
    values = patches(x, 16)
    codes = np.asarray(target(x, values))
    assert len(np.unique(codes)) > 4
    np.testing.assert_array_equal(tf.function(target, jit_compile=True)(x, values), codes)


def test_of_a_discrete_vae_only_the_encoder_is_kept_and_saved(tmp_path):
    vae = DiscreteVAE(3, 16, 4, 1, 4, name="vae")
    vae.build()
    target = TokenTarget(vae)
    assert (target.tokenizer, target.num_values) == (vae.encoder, 16)
    x = images(2, 16, 16, 3)
    inputs = keras.Input((16, 16, 3), dtype="uint8"), keras.Input((4, 192))
    model = keras.Model(inputs, target(*inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded([x, patches(x, 8)]), target(x, patches(x, 8)))
    assert loaded.count_params() == vae.encoder.count_params()


def test_another_number_of_channels_is_an_error(target):
    x = images(2, 16, 16, 1)
    with pytest.raises(ValueError, match=r"Expected images of 3 channel\(s\)"):
        target(x, patches(x, 8))


def test_what_is_no_tokenizer_is_an_error():
    with pytest.raises(ValueError, match="A tokenizer is a DiscreteVAE or a TokenEncoder. Received: Dense"):
        TokenTarget(keras.layers.Dense(3))
