"""PCA coefficients as target: projections against NumPy, the pixels' loss where nothing is left out, and the file."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mae.models import MaskedAutoencoder, VisionTransformer
from keras_mae.models.pca_file import PatchPCA, read_pca
from keras_mae.models.pca_target import PCATarget
from keras_mae.models.targets import PixelTarget

VALUES = 12  # patches of 2x2x3


def fitted(num_values=5, rows=200):
    """Correlated rows, their mean, and their first right singular vectors."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal((rows, VALUES)) @ rng.standard_normal((VALUES, VALUES)) + rng.standard_normal(VALUES)
    mean = data.mean(axis=0)
    return data, mean, np.linalg.svd(data - mean, full_matrices=False)[2][:num_values]


def patches_and_images():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, 4, 6, 3), dtype="uint8")
    return images, rng.standard_normal((2, 6, VALUES)).astype("float32")


def encoder(**options):
    return VisionTransformer(
        **{"image_size": (4, 6), "patch_size": 2, "embed_dim": 8, "depth": 1, "num_heads": 2, **options}
    )


def save(path, num_values=5, **changes):
    _, mean, components = fitted(num_values)
    fields = {
        "mean": mean.astype("float32"),
        "components": components.astype("float32"),
        "explained_variance": np.linspace(2, 1, num_values),
        "total_variance": 20.0,
        "patch_size": 2,
        "channels": 3,
        "pixel_mean": (0.485, 0.456, 0.406),
        "pixel_std": (0.229, 0.224, 0.225),
        "source": {"split": "train", "images": 7},
        **changes,
    }
    pca = PatchPCA(**fields)
    with open(path, "wb") as file:
        pca.write(file)
    return pca


def test_target_is_the_dot_product_with_each_component():
    _, mean, components = fitted()
    images, patches = patches_and_images()
    target = np.asarray(PCATarget(mean, components)(images, patches))
    assert target.shape == (2, 6, 5) and target.dtype == "float32"
    for b in range(2):
        for n in range(6):
            for k in range(5):
                expected = sum((patches[b, n, i] - mean[i]) * components[k, i] for i in range(VALUES))
                assert target[b, n, k] == pytest.approx(expected, abs=1e-5)


def test_patch_losses_are_those_of_the_loop():
    _, mean, components = fitted()
    layer = PCATarget(mean, components)
    prediction, target = np.random.standard_normal((2, 2, 6, 5)).astype("float32")
    losses = np.asarray(layer.patch_losses(prediction, target))
    assert losses.shape == (2, 6)
    for b in range(2):
        for n in range(6):
            expected = sum((float(prediction[b, n, k]) - float(target[b, n, k])) ** 2 for k in range(5)) / 5
            assert losses[b, n] == pytest.approx(expected, rel=1e-5)


def test_with_all_components_the_loss_is_that_of_plain_pixels():
    _, mean, components = fitted(VALUES)
    images, patches = patches_and_images()
    pixels = PixelTarget(VALUES, normalize=False)
    layer = PCATarget(mean, components)
    guess = np.random.standard_normal(patches.shape).astype("float32")
    losses = layer.patch_losses(layer(images, guess), layer(images, patches))
    np.testing.assert_allclose(losses, pixels.patch_losses(guess, pixels(images, patches)), rtol=1e-5)


def test_the_loss_of_a_held_out_patch_and_what_is_left_out_make_up_the_pixels_loss():
    # Pythagoras: |guess - x|^2 = |their coefficients|^2 + |what is left of both|^2; the guess lies in the plane.
    _, mean, components = fitted()
    images, patches = patches_and_images()
    layer = PCATarget(mean, components)
    prediction = np.random.standard_normal((2, 6, 5)).astype("float32")
    target = layer(images, patches)
    inside = 5 * np.asarray(layer.patch_losses(prediction, target))
    outside = np.square(patches - np.asarray(layer.to_patches(target, patches))).sum(axis=-1)
    whole = np.square(patches - np.asarray(layer.to_patches(prediction, patches))).sum(axis=-1)
    np.testing.assert_allclose(inside + outside, whole, rtol=1e-4)


def test_back_projection_is_the_nearest_patch_of_the_plane():
    _, mean, components = fitted()
    images, patches = patches_and_images()
    layer = PCATarget(mean, components)
    back = np.asarray(layer.to_patches(layer(images, patches), patches))
    # Least squares, which knows nothing of orthonormal rows
    flat = (patches.reshape(-1, VALUES) - mean).T
    nearest = (components.T @ np.linalg.lstsq(components.T, flat, rcond=None)[0]).T + mean
    np.testing.assert_allclose(back.reshape(-1, VALUES), nearest, atol=1e-5)


def test_back_projection_with_all_components_gives_the_patches_back():
    _, mean, components = fitted(VALUES)
    images, patches = patches_and_images()
    layer = PCATarget(mean, components)
    np.testing.assert_allclose(layer.to_patches(layer(images, patches), patches), patches, atol=1e-5)


def test_config_round_trips_and_there_is_nothing_to_train():
    layer = PCATarget(*fitted()[1:], name="target")
    images, patches = patches_and_images()
    config = json.loads(json.dumps(layer.get_config()))
    copy = PCATarget.from_config(config)
    assert copy.get_config() == layer.get_config()
    assert copy.num_values == 5 and layer.weights == []
    np.testing.assert_array_equal(copy(images, patches), layer(images, patches))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_losses_are_the_same(jit_compile):
    layer = PCATarget(*fitted()[1:])
    images, patches = patches_and_images()
    prediction = np.random.standard_normal((2, 6, 5)).astype("float32")

    def losses(images, patches):
        return layer.patch_losses(prediction, layer(images, patches))

    compiled = tf.function(losses, jit_compile=jit_compile)
    np.testing.assert_allclose(compiled(images, patches), losses(images, patches), rtol=1e-5)


def test_mixed_precision_leaves_the_target_float32():
    mean, components = fitted()[1:]
    images, patches = patches_and_images()
    mixed = PCATarget(mean, components, dtype="mixed_bfloat16")(images, patches)
    np.testing.assert_array_equal(mixed, PCATarget(mean, components)(images, patches))


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_autoencoder_trains_on_coefficients_and_draws_them(jit_compile, tmp_path):
    save(tmp_path / "pca.npz")
    vit = encoder()
    mae = MaskedAutoencoder(vit, 8, 1, 2, mask_ratio=0.5, target=PCATarget.from_file(tmp_path / "pca.npz", vit))
    images, _ = patches_and_images()
    mae.compile(keras.optimizers.Adam(0.05), jit_compile=jit_compile)
    features = {"image": images, "noise": np.random.default_rng(2).uniform(size=(2, 6)).astype("float32")}
    losses = mae.fit(features, epochs=8, batch_size=2, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]
    assert mae(features)["prediction"].shape == (2, 6, 5)
    assert [image.shape for image in mae.reconstruct(features)] == [(2, 4, 6, 3)] * 2


def test_the_autoencoders_loss_is_that_of_the_removed_patches(tmp_path):
    save(tmp_path / "pca.npz")
    vit = encoder()
    target = PCATarget.from_file(tmp_path / "pca.npz", vit)
    mae = MaskedAutoencoder(vit, 8, 1, 2, mask_ratio=0.5, target=target)
    images, _ = patches_and_images()
    outputs = mae(images)
    error = np.asarray(outputs["prediction"] - target(images, vit.normalized_patches(images)))
    removed = np.asarray(outputs["mask"]) > 0
    expected = [np.square(error[b][removed[b]]).mean() for b in range(2)]
    np.testing.assert_allclose(mae.sample_losses(images, None, outputs), expected, rtol=1e-5)


def test_saved_autoencoder_keeps_its_basis(tmp_path):
    _, mean, components = fitted()
    mae = MaskedAutoencoder(encoder(), 8, 1, 2, mask_ratio=0.5, target=PCATarget(mean, components))
    mae.build()
    mae.save(tmp_path / "mae.keras")
    loaded = keras.models.load_model(tmp_path / "mae.keras")
    np.testing.assert_array_equal(loaded.target.components, components.astype("float32"))
    np.testing.assert_array_equal(loaded.target.mean, mean.astype("float32"))


def test_file_round_trips(tmp_path):
    pca = save(tmp_path / "pca.npz")
    read = read_pca(tmp_path / "pca.npz")
    for name in ("mean", "components", "explained_variance"):
        np.testing.assert_array_equal(getattr(read, name), getattr(pca, name))
    for name in ("total_variance", "patch_size", "channels", "pixel_mean", "pixel_std", "source"):
        assert getattr(read, name) == getattr(pca, name)
    np.testing.assert_allclose(read.explained_shares, np.cumsum([2, 1.75, 1.5, 1.25, 1]) / 20)


@pytest.mark.parametrize(
    "options, name",
    [
        ({"patch_size": 1}, "patch_size"),
        ({"channels": 1, "pixel_mean": 0.5, "pixel_std": 0.5}, "channels"),
        ({"pixel_mean": (0.5, 0.5, 0.5)}, "pixel_mean"),
        ({"pixel_std": 0.25}, "pixel_std"),
    ],
)
def test_file_for_another_model_is_refused_by_name(options, name, tmp_path):
    save(tmp_path / "pca.npz")
    with pytest.raises(ValueError, match=rf"fitted with {name}=.*but the model has {name}="):
        PCATarget.from_file(tmp_path / "pca.npz", encoder(**options))


@pytest.mark.parametrize("content", [b"", b"no archive", "cut", "other"])
def test_damaged_or_foreign_file_is_named(content, tmp_path):
    path = tmp_path / "pca.npz"
    save(path)
    if content == "other":
        np.savez(path, weights=np.zeros(3))
    else:
        path.write_bytes(path.read_bytes()[:500] if content == "cut" else content)
    with pytest.raises(ValueError, match="pca.npz is damaged, or no PCA of patches"):
        read_pca(path)


def test_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_pca(tmp_path / "absent.npz")


def test_rows_that_are_not_orthonormal_are_refused():
    _, mean, components = fitted()
    with pytest.raises(ValueError, match="orthonormal"):
        PCATarget(mean, 2 * components)
    with pytest.raises(ValueError, match="orthonormal"):
        PCATarget(mean, np.full_like(components, np.nan))


def test_wrong_shapes_are_refused():
    _, mean, components = fitted()
    with pytest.raises(ValueError, match=r"Received: \(11,\) and \(5, 12\)"):
        PCATarget(mean[1:], components)
    with pytest.raises(ValueError, match="patches of pixels of 12 values each. Received: 3"):
        PCATarget(mean, components)(patches_and_images()[0], np.zeros((2, 6, 3), "float32"))
    with pytest.raises(ValueError, match="coefficients of 5 values each. Received: 12"):
        PCATarget(mean, components).to_patches(np.zeros((2, 6, 12), "float32"), None)
