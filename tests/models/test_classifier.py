import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_mae.layers.batch_augmentation import (
    ERASING_DRAWS,
    MIX_DRAWS,
    draw_mixing,
    mix_images,
    random_erasing,
)
from keras_mae.layers.patches import patchify
from keras_mae.models import Classifier, VisionTransformer

AUGMENTATION = {"mixup": 0.8, "cutmix": 1.0, "mixup_prob": 1.0, "mixup_switch_prob": 0.5, "erasing": 0.5}


def build(label_smoothing=0.0, augmentation=None, **overrides):
    sizes = {
        "image_size": 8,
        "patch_size": 4,
        "embed_dim": 8,
        "depth": 1,
        "num_heads": 2,
        "final_norm": False,
    }
    encoder = VisionTransformer(**{**sizes, **overrides})
    model = Classifier(encoder, num_classes=4, label_smoothing=label_smoothing, **(augmentation or {}))
    model.build()
    model.head.kernel.assign(np.random.standard_normal((8, 4)))
    return model


def images(batch=6):
    return np.random.randint(0, 256, (batch, 8, 8, 3)).astype("uint8")


def augmented_features(batch=6):
    """A batch of which the second half is erased, with draws for cutmix."""
    mix_noise, erasing_noise = (
        np.random.uniform(size=(batch, MIX_DRAWS)),
        np.random.uniform(size=(batch, ERASING_DRAWS)),
    )
    mix_noise[0] = 0.0, 0.1, 0.4, 0.3, 0.6  # mix, with cutmix, share, centre
    erasing_noise[:, 0] = np.where(np.arange(batch) < batch // 2, 0.9, 0.1)
    draws = {"mix_noise": mix_noise.astype("float32"), "erasing_noise": erasing_noise.astype("float32")}
    return {"image": images(batch), **draws}


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_mean_of_patch_tokens_then_norm_then_head():
    model, x = build(), images()
    pooled = ops.convert_to_numpy(model.encoder(x))[:, 1:].mean(axis=1)  # without the class token
    normed = (pooled - pooled.mean(-1, keepdims=True)) / np.sqrt(pooled.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(model(x), normed @ ops.convert_to_numpy(model.head.kernel), atol=1e-4)


def test_loss_is_cross_entropy_smoothed_in_training_only():
    model, labels = build(label_smoothing=0.1), np.array([0, 3, 1])
    logits = np.random.standard_normal((3, 4)).astype("float32")
    hard = np.eye(4)[labels]
    smooth = np.where(hard == 1, 0.925, 0.025)  # 1 - .1 + .1 / 4, and .1 / 4
    for training, targets in ((True, smooth), (False, hard)):
        expected = -(targets * log_softmax(logits)).sum(axis=-1)
        losses = model.sample_losses(None, labels, logits, training=training)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        loss = model.compute_loss(None, labels, logits, training=training)
        np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)


def test_sample_of_weight_zero_does_not_count():
    model, labels = build(), np.array([0, 3, 1])
    logits = np.random.standard_normal((3, 4)).astype("float32")
    weighted = model.compute_loss(None, labels, logits, sample_weight=np.array([2.0, 2.0, 0.0]))
    np.testing.assert_allclose(weighted, model.compute_loss(None, labels[:2], logits[:2]), rtol=1e-6)


def test_encoder_with_final_norm_is_an_error():
    with pytest.raises(ValueError, match="final_norm=False"):
        build(final_norm=True)


def test_logits_stay_float32_under_mixed_precision():
    assert keras.backend.standardize_dtype(build(dtype="mixed_bfloat16")(images()).dtype) == "float32"


def test_fits_scores_and_saves(tmp_path):
    model = build(drop_path_rate=0.1)
    x, labels = np.repeat(np.arange(4, dtype="uint8") * 60, 192).reshape(4, 8, 8, 3), np.arange(4)
    metrics = ["sparse_categorical_accuracy"]
    model.compile(keras.optimizers.SGD(0.1), weighted_metrics=metrics, jit_compile=False)  # quicker to trace
    history = model.fit(x, labels, batch_size=4, epochs=60, verbose=0).history
    assert history["loss"][-1] < 0.3 < 1.0 < history["loss"][0]
    assert model.evaluate(x, labels, verbose=0, return_dict=True)["sparse_categorical_accuracy"] == 1.0
    model.save(tmp_path / "classifier.keras")
    loaded = keras.models.load_model(tmp_path / "classifier.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
    assert len(loaded.trainable_weights) == len(loaded.weights)


def test_training_images_are_normalised_then_erased_then_mixed():
    model, features = build(augmentation=AUGMENTATION), augmented_features()
    x = random_erasing(model.encoder.normalized_images(features["image"]), features["erasing_noise"], 0.5)
    x = mix_images(x, draw_mixing(features["mix_noise"], (8, 8), mixup=0.8, cutmix=1.0)[0])
    tokens = model.encoder.encode(patchify(x, 4), training=True)
    expected = model.head(model.norm(ops.mean(tokens[:, 1:], axis=1)))
    np.testing.assert_allclose(model(features, training=True), expected, rtol=1e-5)
    assert np.abs(model(features, training=True) - model(features)).max() > 0.01


def test_training_targets_are_smoothed_then_mixed():
    # Share .4: a box of sqrt(.6) x 8 = 6 pixels a side around (2, 4), clipped above: 5 x 6 of 64, so 34 / 64 remain.
    model, labels = build(label_smoothing=0.1, augmentation=AUGMENTATION), np.array([0, 3, 1, 1, 2, 0])
    logits = np.random.standard_normal((6, 4)).astype("float32")
    smooth = np.where(np.eye(4)[labels] == 1, 0.925, 0.025)
    targets = 34 / 64 * smooth + 30 / 64 * smooth[::-1]
    losses = model.sample_losses(augmented_features(), labels, logits, training=True)
    np.testing.assert_allclose(losses, -(targets * log_softmax(logits)).sum(axis=-1), rtol=1e-5)


def test_evaluation_knows_nothing_of_augmentation():
    plain, model, features = build(), build(augmentation=AUGMENTATION), augmented_features()
    model.set_weights(plain.get_weights())
    labels, logits = np.array([0, 3, 1, 1, 2, 0]), plain(features["image"])
    for x in (features, features["image"]):
        np.testing.assert_array_equal(model(x), logits)
        for name, values in model.sample_metrics(x, labels, logits).items():
            np.testing.assert_array_equal(values, plain.sample_metrics(None, labels, logits)[name])


@pytest.mark.slow
def test_augmented_step_under_xla_is_the_plain_one():
    model, labels = build(label_smoothing=0.1, augmentation=AUGMENTATION), tf.constant([0, 3, 1, 1, 2, 0])
    features = {name: tf.constant(value) for name, value in augmented_features().items()}

    def step():
        with tf.GradientTape() as tape:
            loss = model.compute_loss(features, labels, model(features, training=True), training=True)
        return [loss, *tape.gradient(loss, [v.value for v in model.trainable_variables])]

    for plain, compiled in zip(step(), tf.function(step, jit_compile=True)(), strict=True):
        np.testing.assert_allclose(plain, compiled, atol=1e-5)


@pytest.mark.parametrize("missing", ["mix_noise", "erasing_noise"])
def test_training_without_the_draws_is_an_error(missing):
    model, features = build(augmentation=AUGMENTATION), augmented_features()
    del features[missing]
    with pytest.raises(ValueError, match=rf"needs the feature '{missing}'.* Received: features \['"):
        model(features, training=True)
    with pytest.raises(ValueError, match=r"needs the feature 'mix_noise'.* Received: features \['image'\]"):
        model.compute_loss(features["image"], np.zeros(6, "int32"), np.zeros((6, 4), "float32"))


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [({"mixup": -0.1}, "at least 0. Received: mixup=-0.1"), ({"erasing": 1.5}, "at most 1. Received: .*erasing=1.5")],
)
def test_augmentation_out_of_its_range_is_an_error(argument, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(augmentation=argument)


def test_saved_classifier_keeps_its_augmentation(tmp_path):
    model, features = build(augmentation=AUGMENTATION), augmented_features()
    model.save(tmp_path / "classifier.keras")
    loaded = keras.models.load_model(tmp_path / "classifier.keras")
    assert {name: getattr(loaded, name) for name in AUGMENTATION} == AUGMENTATION
    np.testing.assert_array_equal(loaded(features, training=True), model(features, training=True))
