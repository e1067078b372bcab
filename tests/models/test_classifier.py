import keras
import numpy as np
import pytest
from keras import ops

from keras_mae.models import Classifier, VisionTransformer


def build(label_smoothing=0.0, **overrides):
    sizes = {
        "image_size": 8,
        "patch_size": 4,
        "embed_dim": 8,
        "depth": 1,
        "num_heads": 2,
        "final_norm": False,
    }
    model = Classifier(VisionTransformer(**{**sizes, **overrides}), num_classes=4, label_smoothing=label_smoothing)
    model.build()
    model.head.kernel.assign(np.random.standard_normal((8, 4)))
    return model


def images(batch=6):
    return np.random.randint(0, 256, (batch, 8, 8, 3)).astype("uint8")


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
