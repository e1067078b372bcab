"""A saved encoder inside a user's model: the tokens of its blocks, frozen or trained, saved and loaded."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.tiny_vit import TINY_VIT

from keras_mae import Backbone
from keras_mae.models import VisionTransformer
from keras_mae.training.saved_model import SavedModelError, named_weights

SIZES = {**TINY_VIT, "image_size": (8, 12), "patch_size": 4, "depth": 3}


@pytest.fixture(scope="module")
def encoder():
    encoder = VisionTransformer(**SIZES)
    encoder.build()
    rng = np.random.default_rng(0)
    for weight in encoder.weights:  # nothing stays as initialised
        weight.assign(weight + rng.normal(0, 0.1, weight.shape))
    return encoder


@pytest.fixture(scope="module")
def saved(encoder, tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "encoder.keras"
    encoder.save(path)
    return path


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (3, 8, 12, 1), dtype="uint8")


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def build_model(saved, **options):
    image = keras.Input((8, 12, 1), dtype="uint8")
    features = Backbone.from_saved(saved, outputs="patch_mean", **options)(image)
    return keras.Model(image, keras.layers.Dense(3)(features))


def test_outputs_are_those_of_the_encoder(encoder, images):
    tokens = numpy(encoder(images))  # (3, 1 + 2 * 3, 16)
    found = {name: numpy(Backbone(encoder, name)(images)) for name in ("tokens", "class_token", "patch_mean")}
    np.testing.assert_allclose(found["tokens"], tokens, atol=1e-6)
    np.testing.assert_allclose(found["class_token"], tokens[:, 0], atol=1e-6)
    np.testing.assert_allclose(found["patch_mean"], tokens[:, 1:].mean(axis=1), atol=1e-6)


def test_a_feature_map_has_the_tokens_where_the_patches_were(encoder, saved, images):
    feature_map = numpy(Backbone.from_saved(saved, "pyramid", layers=-1)(images))
    assert feature_map.shape == (3, 2, 3, 16)
    tokens = numpy(encoder(images))
    for row in range(2):
        for column in range(3):
            np.testing.assert_allclose(feature_map[:, row, column], tokens[:, 1 + 3 * row + column], atol=1e-6)


def test_tokens_of_a_block_are_those_of_an_encoder_that_ends_there(encoder, images):
    found = Backbone(encoder, layers=[-1, 0])(images)
    assert list(found) == ["block_2", "block_0"]
    for number in (0, 2):
        shorter = VisionTransformer(**{**SIZES, "depth": number + 1})
        shorter.build()
        weights = named_weights(encoder)
        for name, weight in named_weights(shorter).items():
            weight.assign(weights[name])
        np.testing.assert_allclose(numpy(found[f"block_{number}"]), numpy(shorter(images)), atol=1e-6)


def test_without_a_final_norm_blocks_come_out_as_they_are(encoder, saved, images):
    backbone = Backbone.from_saved(saved, layers=[0, 2], final_norm=False)
    found = [numpy(x) for x in backbone(images).values()]
    x = found[0]
    for block in encoder.blocks[1:]:
        x = block(x)
    np.testing.assert_allclose(found[1], numpy(x), atol=1e-5)
    np.testing.assert_allclose(numpy(encoder.norm(found[1])), numpy(encoder(images)), atol=1e-5)


def test_a_pyramid_is_of_the_last_block_of_each_quarter(encoder):
    assert Backbone(encoder, "pyramid").blocks == [0, 1, 2]
    deep = VisionTransformer(**{**SIZES, "depth": 12})
    assert Backbone(deep, "pyramid").blocks == [2, 5, 8, 11]
    assert Backbone(VisionTransformer(**{**SIZES, "depth": 2}), "pyramid").blocks == [0, 1]


def test_blocks_after_the_last_chosen_one_are_left_out(encoder, saved, images):
    backbone = Backbone.from_saved(saved, "pyramid", layers=[0, -2], drop_path_rate=0.2)
    assert backbone.encoder.depth == 2
    rates = [block.drop_path_rate for block in backbone.encoder.blocks]
    np.testing.assert_allclose(rates, [0.0, 0.1])  # of 0, .1, .2
    whole = Backbone(encoder, "pyramid", layers=[0, 1])(images)
    for name, feature_map in backbone(images).items():
        np.testing.assert_allclose(numpy(feature_map), numpy(whole[name]), atol=1e-6)


def test_other_image_sizes_have_other_maps(saved):
    backbone = Backbone.from_saved(saved, "pyramid", layers=2, image_size=(16, 8))
    assert backbone(np.zeros((1, 16, 8, 1), "uint8")).shape == (1, 4, 2, 16)


@pytest.mark.parametrize("trainable", [False, True])
def test_training_moves_a_backbone_unless_it_is_frozen(saved, images, trainable):
    model = build_model(saved, trainable=trainable)
    backbone, head = model.layers[1:]
    before = backbone.get_weights()
    assert len(model.trainable_variables) == len(head.weights) + (len(before) if trainable else 0)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(images, training=True) ** 2)
    gradients = tape.gradient(loss, [weight.value for weight in backbone.weights])
    assert not trainable or all(np.any(numpy(gradient) != 0) for gradient in gradients)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    head_before = numpy(head.kernel)
    model.fit(images, np.array([0, 1, 2]), verbose=0)
    moved = [not np.array_equal(old, new) for old, new in zip(before, backbone.get_weights(), strict=True)]
    assert moved == len(before) * [trainable]
    assert not np.array_equal(numpy(head.kernel), head_before)


@pytest.mark.parametrize("trainable", [False, True])
def test_a_model_with_a_backbone_is_saved_and_loaded(saved, images, trainable, tmp_path):
    model = build_model(saved, trainable=trainable)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(images)), numpy(model(images)))
    names = [[v.path for v in m.trainable_variables] for m in (model, loaded)]
    assert len(names[0]) == len(names[1]) == (2 if not trainable else 2 + len(model.layers[1].weights))


def test_a_backbone_can_be_thawed(saved):
    model = build_model(saved, trainable=False)
    model.layers[1].trainable = True
    assert len(model.trainable_variables) == len(model.weights)


def test_the_global_policy_is_the_backbones(saved, images):
    expected = numpy(Backbone.from_saved(saved)(images))
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        tokens = Backbone.from_saved(saved)(images)
    finally:
        keras.config.set_dtype_policy("float32")
    assert keras.backend.standardize_dtype(tokens.dtype) == "bfloat16"
    np.testing.assert_allclose(numpy(keras.ops.cast(tokens, "float32")), expected, atol=0.15)


def test_drop_path_acts_in_training_only_and_by_the_noise_that_is_given(encoder, saved, images):
    backbone = Backbone.from_saved(saved, layers=[0, 2], drop_path_rate=0.9)
    features = {"image": images, "drop_noise": np.zeros((3, 6), "float32")}  # drops all that may be dropped
    dropped, kept = (list(backbone(features, training=training).values()) for training in (True, False))
    np.testing.assert_allclose(numpy(dropped[0]), numpy(kept[0]), atol=1e-6)  # the first block drops nothing
    np.testing.assert_allclose(numpy(dropped[1]), numpy(dropped[0]), atol=1e-6)  # of blocks 1 and 2 nothing is left
    assert np.abs(numpy(kept[1]) - numpy(kept[0])).max() > 0.1
    np.testing.assert_allclose(numpy(kept[1]), numpy(encoder(images)), atol=1e-6)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"outputs": "logits"}, "outputs must be one of tokens, class_token, patch_mean, pyramid. Received: 'logits'"),
        ({"layers": 3}, r"from -3 to 2. Received: \[3\]"),
        ({"layers": [1, -2]}, r"different numbers of blocks.*Received: \[1, -2\]"),
        ({"layers": []}, r"Received: \[\]"),
    ],
)
def test_impossible_outputs_and_layers_are_refused(encoder, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Backbone(encoder, **options)


def test_a_missing_model_is_refused():
    with pytest.raises(SavedModelError, match="There is no model at /nowhere.keras"):
        Backbone.from_saved("/nowhere.keras")
