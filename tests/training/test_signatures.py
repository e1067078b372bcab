"""Signatures of SavedModels against plain Keras and NumPy: inner blocks, best classes, reconstructions, bfloat16."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.tiny_vit import TINY_VIT

from keras_mae.models import Classifier, MaskedAutoencoder, VisionTransformer
from keras_mae.training.saved_model import load_model, named_weights, write_saved_model
from keras_mae.training.saved_model_layer import SavedModelLayer
from keras_mae.training.signatures import SignatureOptions, make_signatures, model_facts

NAMES = ("apple", "pear", "nut", "fig", "plum", "kiwi", "über")
OPTIONS = SignatureOptions(layers=(1, 0), classes=NAMES, training=True)


@pytest.fixture(scope="module")
def classifier():
    model = Classifier(VisionTransformer(**TINY_VIT, final_norm=False, drop_path_rate=0.5), len(NAMES))
    model.build()
    model.head.kernel.assign(np.random.default_rng(0).normal(size=(16, len(NAMES))))
    return model


@pytest.fixture(scope="module")
def folder(classifier, tmp_path_factory):
    """A SavedModel of the classifier with all that `OPTIONS` asks for."""
    path = tmp_path_factory.mktemp("signatures") / "saved_model"
    write_saved_model(classifier, path, OPTIONS)
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    return tf.saved_model.load(str(folder))


@pytest.fixture
def images(halves):
    return tf.constant(halves[0])


def mae(**options):
    encoder = VisionTransformer(**TINY_VIT)
    model = MaskedAutoencoder(encoder, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, **options)
    model.build()
    return model


def test_inner_blocks_are_those_of_the_encoder(classifier, loaded, images):
    encoder = classifier.encoder
    x = encoder.with_positions(encoder.patch_embedding(encoder.normalized_patches(images)))
    received = loaded.signatures["features"](image=images)
    for number, block in enumerate(encoder.blocks):
        x = block(x)
        np.testing.assert_allclose(received[f"tokens_after_block_{number}"], x, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(received["tokens"], received["tokens_after_block_1"])


def test_the_best_classes_come_with_their_names(classifier, loaded, images):
    received = loaded.signatures["classify"](image=images)
    logits = np.asarray(classifier(images), "float64")
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    best = np.argsort(-probabilities, axis=1)[:, :5]
    np.testing.assert_array_equal(received["top5_classes"], best)
    np.testing.assert_allclose(
        received["top5_probabilities"], np.take_along_axis(probabilities, best, axis=1), rtol=1e-4
    )
    found = [[name.decode() for name in row] for row in received["top5_names"].numpy()]
    assert found == [[NAMES[number] for number in row] for row in best]


def test_few_classes_without_names_are_numbers_as_text(images):
    model = Classifier(VisionTransformer(**TINY_VIT, final_norm=False), 3)
    model.build()
    received = make_signatures(model, SignatureOptions())["classify"].function(images)
    assert sorted(received["top5_names"].numpy()[0]) == [b"0", b"1", b"2"]


def test_names_that_are_no_text_are_shown_as_such(images):
    model = Classifier(VisionTransformer(**TINY_VIT, final_norm=False), 2)
    model.build()
    classify = make_signatures(model, SignatureOptions(classes=("caf\udce9", "b")))["classify"].function
    assert sorted(classify(images)["top5_names"].numpy()[0]) == [b"b", rb"caf\udce9"]


@pytest.mark.parametrize("batch", [1, 7, 16])
def test_a_batch_of_any_size_gives_the_same_rows_each_time(loaded, images, batch):
    signature = loaded.signatures["classify"]
    expected = signature(image=images)["logits"][:batch]
    for _ in range(2):
        np.testing.assert_allclose(signature(image=images[:batch])["logits"], expected, rtol=1e-5, atol=1e-6)


def test_the_card_names_what_the_signatures_give(classifier, loaded):
    facts = model_facts(classifier, OPTIONS)
    given = {name: set(signature.structured_outputs) for name, signature in loaded.signatures.items()}
    assert given.pop("serving_default") == given["features"]
    assert {name: set(outputs) for name, outputs in facts["signatures"].items()} == given
    assert facts["image"]["shape"] == ["any batch", 8, 8, 1] and facts["image"]["range"] == [0, 255]
    assert facts["model"]["parameters"] == sum(np.prod(weight.shape) for weight in classifier.weights)


def test_every_variable_is_saved_once(classifier, folder):
    saved = [shape for name, shape in tf.train.list_variables(str(folder / "variables" / "variables")) if shape]
    assert sorted(map(tuple, saved)) == sorted(tuple(variable.shape) for variable in classifier.variables)


def test_drop_path_is_drawn_anew_in_every_call_of_the_training_endpoint(loaded, images):
    calls = [loaded.signatures["features_training"](image=images) for _ in range(2)]
    expected = loaded.signatures["features"](image=images)
    for call in calls:  # the first block never drops, the last one half of its branches
        np.testing.assert_allclose(call["tokens_after_block_0"], expected["tokens_after_block_0"], rtol=1e-5, atol=1e-5)
        assert np.abs(call["tokens"] - expected["tokens"]).max() > 1e-3
    assert np.abs(calls[0]["tokens"] - calls[1]["tokens"]).max() > 1e-3


def moved_by_a_step(model, layer, halves):
    """How many of the layer's weights one step of Adam moves."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, run_eagerly=True)  # tracing takes seconds
    before = [weight.numpy() for weight in layer.trainable_weights]
    model.train_on_batch(*halves)
    return sum(np.any(weight.numpy() != old) for weight, old in zip(layer.trainable_weights, before, strict=True))


def test_a_keras_layer_trains_through_the_training_endpoint_and_keeps_it(folder, images, halves):
    layer = SavedModelLayer(folder, call_training_endpoint="features_training")
    image = keras.Input((8, 8, 1), dtype="uint8")
    model = keras.Model(image, keras.layers.Dense(2)(layer(image)["patch_mean"]))
    quiet, noisy = model(images, training=False), model(images, training=True)
    np.testing.assert_array_equal(model(images, training=False), quiet)
    assert np.abs(noisy - quiet).max() > 1e-3
    assert moved_by_a_step(model, layer, halves) > 20
    assert layer.get_config()["call_training_endpoint"] == "features_training"


def test_classify_trains_as_a_keras_layer_although_it_gives_names(folder, halves):
    layer = SavedModelLayer(folder, "classify")
    image = keras.Input((8, 8, 1), dtype="uint8")
    assert moved_by_a_step(keras.Model(image, layer(image)["logits"]), layer, halves) > 20


def test_bfloat16_halves_the_weights_and_loads_as_float32(classifier, folder, tmp_path, images):
    path = tmp_path / "saved_model"
    write_saved_model(classifier, path, SignatureOptions(precision="bfloat16"))
    small = tf.saved_model.load(str(path))
    assert {v.dtype for v in small.trainable_variables} == {tf.bfloat16, tf.float32}  # the head computes in float32
    outputs = small.signatures["features"](image=images)
    assert {value.dtype for value in outputs.values()} == {tf.float32}
    expected = classifier(images)
    received = small.signatures["classify"](image=images)["logits"]
    np.testing.assert_allclose(received, expected, atol=0.03 * np.abs(expected).max())
    assert np.abs(received - expected).max() > 0  # it does compute in bfloat16
    rebuilt, original = load_model(path), named_weights(classifier)
    for name, weight in named_weights(rebuilt).items():
        assert weight.dtype == "float32"
        rounded = original[name] if name.startswith("head") else tf.cast(original[name], "bfloat16")
        np.testing.assert_array_equal(weight, tf.cast(rounded, "float32"), err_msg=name)
    data = "variables/variables.data-00000-of-00001"
    assert (path / data).stat().st_size < 0.6 * (folder / data).stat().st_size


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A masked autoencoder of plain pixels, and its SavedModel."""
    model = mae(norm_pix_loss=False, mask_ratio=0.75)
    path = tmp_path_factory.mktemp("autoencoder") / "saved_model"
    write_saved_model(model, path)
    return model, path


def test_reconstruct_shows_the_decoders_pixels_where_the_noise_is_largest(autoencoder, images):
    model, path = autoencoder
    signature = tf.saved_model.load(str(path)).signatures["reconstruct"]
    noise = np.random.default_rng(0).random((16, 16), dtype="float32")
    received = {name: value.numpy() for name, value in signature(image=images, noise=tf.constant(noise)).items()}
    prediction = np.asarray(model({"image": images, "noise": noise})["prediction"])
    assert received["reconstruction"].dtype == "float32"
    for image, rebuilt, draws, mask, patches in zip(
        images.numpy(), received["reconstruction"], noise, received["mask"], prediction, strict=True
    ):
        assert set(np.flatnonzero(mask == 0)) == set(np.argsort(draws)[:4])
        for number in range(16):
            row, column = 2 * (number // 4), 2 * (number % 4)
            expected = image[row : row + 2, column : column + 2]
            if mask[number]:  # pixel_mean and pixel_std are .5
                pixels = (patches[number].reshape(2, 2, 1) * 0.5 + 0.5) * 255
                expected = np.clip(np.round(pixels), 0, 255)
            np.testing.assert_allclose(rebuilt[row : row + 2, column : column + 2], expected, atol=1)  # rounding
    again = signature(image=images, noise=tf.constant(received["mask"]))  # a mask is valid noise
    np.testing.assert_array_equal(again["mask"], received["mask"])
    np.testing.assert_allclose(again["reconstruction"], received["reconstruction"], atol=1)


def test_a_saved_autoencoder_is_rebuilt_whole(autoencoder):
    model, path = autoencoder
    rebuilt, original = load_model(path), named_weights(model)
    assert isinstance(rebuilt, MaskedAutoencoder)
    assert all(np.array_equal(weight, original[name]) for name, weight in named_weights(rebuilt).items())


class MeanTarget(keras.layers.Layer):
    """A target whose predictions are no pixels: the mean of each patch."""

    num_values = 1

    def call(self, images, patches):
        return keras.ops.mean(patches, axis=-1, keepdims=True)

    def patch_losses(self, prediction, target):
        return keras.ops.square(prediction - target)[..., 0]


def test_models_that_cannot_reconstruct_are_refused():
    for kind in ("block", "grid"):
        with pytest.raises(ValueError, match=f"mask_kind must be 'random'. Received: mask_kind='{kind}'"):
            make_signatures(mae(mask_kind=kind), SignatureOptions())
    with pytest.raises(ValueError, match="cannot be shown as pixels: its target is a MeanTarget"):
        make_signatures(mae(target=MeanTarget()), SignatureOptions())


def test_wrong_options_are_refused(classifier):
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16. Received: 'float16'"):
        SignatureOptions(precision="float16")
    with pytest.raises(ValueError, match="knows 7 classes. Received: 2 names"):
        make_signatures(classifier, SignatureOptions(classes=("a", "b")))
