import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_mae.models import MaskedAutoencoder, VisionTransformer

NUM_PATCHES, NUM_VISIBLE = 6, 3


def build(mask_ratio=0.5, norm_pix_loss=True, dtype="float32", **encoder):
    sizes = {
        "image_size": (8, 12),
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
        "dtype": dtype,
    }
    encoder = VisionTransformer(**{**sizes, **encoder})
    model = MaskedAutoencoder(encoder, 8, 1, 2, mask_ratio=mask_ratio, norm_pix_loss=norm_pix_loss, seed=1)
    model.build()
    return model


def images(batch=4):
    return np.random.randint(0, 256, (batch, 8, 12, 3)).astype("uint8")


def batch(size=4):
    return {
        "image": images(size),
        "noise": np.random.uniform(size=(size, NUM_PATCHES)).astype("float32"),
        "index": np.arange(size),
    }


def numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def test_mask_follows_the_noise_and_one_means_removed():
    features = batch()
    outputs = build()(features)
    order = features["noise"].argsort(axis=1)
    expected = np.ones((4, NUM_PATCHES))
    np.put_along_axis(expected, order[:, :NUM_VISIBLE], 0, axis=1)
    np.testing.assert_array_equal(outputs["mask"], expected)


def test_latent_is_what_the_encoder_makes_of_the_visible_patches_by_ascending_noise():
    model, features = build(), batch()
    ids = features["noise"].argsort(axis=1)[:, :NUM_VISIBLE]
    patches = np.take_along_axis(numpy(model.encoder.normalized_patches(features["image"])), ids[:, :, None], 1)
    np.testing.assert_array_equal(model(features)["latent"], model.encoder.encode(patches, ids))


def test_prediction_knows_nothing_of_removed_patches():
    model, features = build(), batch()
    outputs = model(features)
    mask = numpy(outputs["mask"]).reshape(4, 2, 3)
    removed = np.repeat(np.repeat(mask, 4, axis=1), 4, axis=2)[..., None] == 1  # (B, H, W, 1)
    other = {
        **features,
        "image": np.where(removed, 255 - features["image"], features["image"]).astype("uint8"),
    }
    np.testing.assert_array_equal(model(other)["prediction"], outputs["prediction"])
    visible = {
        **features,
        "image": np.where(removed, features["image"], 255 - features["image"]).astype("uint8"),
    }
    assert np.abs(numpy(model(visible)["prediction"]) - numpy(outputs["prediction"])).max() > 1e-3


def test_every_prediction_stands_at_its_own_patch():
    # Mask tokens differ only by their position; a kept patch is seen at its own place whatever the order of
    # the noise. So noise that keeps the same patches, in another order, predicts the same.
    model, x = build(), images(1)
    one = model({"image": x, "noise": np.array([[0.1, 0.9, 0.2, 0.8, 0.3, 0.7]], "float32")})
    two = model({"image": x, "noise": np.array([[0.3, 0.7, 0.1, 0.9, 0.2, 0.8]], "float32")})
    np.testing.assert_allclose(one["prediction"], two["prediction"], atol=1e-5)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_loss_is_the_mean_square_over_removed_patches(norm_pix_loss):
    model, features = build(norm_pix_loss=norm_pix_loss), batch()
    outputs = model(features)
    patches = numpy(model.encoder.normalized_patches(features["image"])).astype("float64")
    if norm_pix_loss:
        variance = patches.var(axis=-1, ddof=1, keepdims=True)
        patches = (patches - patches.mean(axis=-1, keepdims=True)) / np.sqrt(variance + 1e-6)
    errors = ((numpy(outputs["prediction"]) - patches) ** 2).mean(axis=-1)  # (B, N)
    expected = [errors[b][numpy(outputs["mask"])[b] == 1].mean() for b in range(4)]
    np.testing.assert_allclose(model.sample_losses(features, None, outputs), expected, rtol=1e-5)
    np.testing.assert_allclose(model.compute_loss(features, y_pred=outputs), np.mean(expected), rtol=1e-5)


def test_kept_patches_do_not_enter_the_loss():
    model, features = build(), batch()
    outputs = model(features)
    kept = numpy(1 - outputs["mask"])[:, :, None]
    loss = model.compute_loss(features, y_pred=outputs)
    wrong_kept = {**outputs, "prediction": outputs["prediction"] + 100 * kept}
    wrong_removed = {**outputs, "prediction": outputs["prediction"] + 1 - kept}
    np.testing.assert_array_equal(model.compute_loss(features, y_pred=wrong_kept), loss)
    assert float(model.compute_loss(features, y_pred=wrong_removed)) > float(loss) + 0.1


def test_in_training_removed_patches_get_the_same_prediction_and_visible_ones_none():
    model, features = build(), batch()
    expected, outputs = model(features), model(features, training=True)
    removed = numpy(outputs["mask"])[:, :, None]
    np.testing.assert_allclose(outputs["prediction"], numpy(expected["prediction"]) * removed, rtol=1e-5, atol=1e-6)


def test_a_loss_on_all_patches_reads_predictions_of_visible_patches_in_training():
    encoder = VisionTransformer((8, 12), 4, embed_dim=16, depth=1, num_heads=2)
    model, features = MaskedAutoencoder(encoder, 8, 1, 2, mask_ratio=0.5, loss_on_all_patches=True), batch()
    np.testing.assert_allclose(
        model(features, training=True)["prediction"], numpy(model(features)["prediction"]), rtol=1e-5, atol=1e-6
    )


def test_skipping_visible_patches_changes_no_gradient():
    model, features = build(), batch()
    gradients = []
    for training in (False, True):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(features, y_pred=model(features, training=training))
        gradients.append(tape.gradient(loss, [v.value for v in model.trainable_weights]))
    for full, skipping in zip(*gradients, strict=True):
        np.testing.assert_allclose(skipping, full, rtol=1e-4, atol=1e-6)


def test_predicting_the_mean_patch_costs_n_minus_one_over_n():
    model, features = build(), batch()
    outputs = {**model(features), "prediction": np.zeros((4, NUM_PATCHES, 48), "float32")}
    np.testing.assert_allclose(model.compute_loss(features, y_pred=outputs), 47 / 48, rtol=1e-5)


def test_samples_of_weight_zero_do_not_count():
    model, features = build(), batch()
    outputs = model(features)
    losses = numpy(model.sample_losses(features, None, outputs))
    weights = np.array([1.0, 3.0, 0.0, 0.0], "float32")
    loss = model.compute_loss(features, y_pred=outputs, sample_weight=weights)
    np.testing.assert_allclose(loss, (losses[0] + 3 * losses[1]) / 4, rtol=1e-6)
    assert float(model.compute_loss(features, y_pred=outputs, sample_weight=0 * weights)) == 0


def test_without_noise_masks_differ_between_samples_and_calls():
    model, x = build(), images(32)
    masks = np.stack([numpy(model(x)["mask"]), numpy(model(x)["mask"])])
    assert len(np.unique(masks[0], axis=0)) > 5  # of 20 possible ones
    assert np.any(masks[0] != masks[1])


@pytest.mark.parametrize("ratio, sentence", [(1.0, "below 1"), (-0.5, "at least 0"), (0.9, "leaves none of 6")])
def test_impossible_mask_ratio_is_an_error(ratio, sentence):
    with pytest.raises(ValueError, match=f"{sentence}(.*)"):
        build(mask_ratio=ratio)


def test_mask_ratio_that_removes_nothing_is_an_error():
    with pytest.raises(ValueError, match="At least one patch must be removed.*mask_ratio=0.0 of 6 patches"):
        build(mask_ratio=0.0)


def test_image_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"Expected images of shape \(batch, 8, 12, 3\)"):
        build()(np.zeros((2, 8, 8, 3), "uint8"))


def test_noise_keeps_its_float32_digits_under_mixed_precision():
    # All six round to the same bfloat16 number.
    features = {
        **batch(1),
        "noise": np.array([[0.50006, 0.50001, 0.50005, 0.50002, 0.50004, 0.50003]], "float32"),
    }
    model = build(dtype="mixed_bfloat16")
    np.testing.assert_array_equal(model(features)["mask"], [[1, 0, 1, 0, 1, 0]])
    np.testing.assert_array_equal(model.predict(features, verbose=0)["mask"], [[1, 0, 1, 0, 1, 0]])


def fit(model, data, compile_options=None, **kwargs):
    model.compile(keras.optimizers.SGD(0.1), **(compile_options or {"jit_compile": False}))  # quicker to trace
    return model.fit(data, verbose=0, shuffle=False, **kwargs).history["loss"]


def assert_reloads_equal(model, path):
    features = batch()
    model.save(path)
    loaded, expected = keras.models.load_model(path), model(features)
    for key, value in loaded(features).items():
        np.testing.assert_array_equal(numpy(value), numpy(expected[key]), err_msg=key)
    assert len(loaded.trainable_weights) == len(model.trainable_weights)


def test_fits_a_plain_uint8_array_and_saves(tmp_path):
    model = build()
    losses = fit(model, images(8), batch_size=4, epochs=30)
    assert losses[-1] < 0.9 * losses[0]
    assert_reloads_equal(model, tmp_path / "model.keras")


def test_fits_batches_of_the_pipeline_under_mixed_bfloat16_and_saves(tmp_path):
    model, features = build(dtype="mixed_bfloat16"), batch()
    losses = fit(model, tf.data.Dataset.from_tensors(features).repeat(), epochs=2, steps_per_epoch=15)
    assert np.all(np.isfinite(losses)) and losses[1] < 0.99 * losses[0]
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert_reloads_equal(model, tmp_path / "model.keras")


def test_compiled_by_xla_a_step_is_the_same():
    plain, compiled = build(), build()
    compiled.set_weights(plain.get_weights())
    data = tf.data.Dataset.from_tensors(batch()).repeat(2)
    losses = fit(compiled, data, {"jit_compile": True}), fit(plain, data, {"run_eagerly": True})
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for a, b in zip(compiled.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_evaluate_reports_the_loss_of_its_batches():
    model, features = build(), batch()
    model.compile()
    loss = model.compute_loss(features, y_pred=model(features))
    scored = model.evaluate(tf.data.Dataset.from_tensors(features), verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(scored, loss, rtol=1e-5)
