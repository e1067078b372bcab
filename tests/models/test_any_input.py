"""Images that are not square, of any number of channels, of 8 or 16 bits, cut into patches of any size."""

import keras
import numpy as np
import pytest
from PIL import Image

from keras_mae.models import MaskedAutoencoder, VisionTransformer
from tools import reconstruct

RANDOM = np.random.default_rng(0)
# Height and width, patch size, channels, type
INPUTS = [
    ((8, 12), 4, 1, "uint8"),
    ((12, 8), 4, 4, "uint8"),
    ((14, 28), 14, 13, "uint16"),
    ((28, 14), 14, 1, "uint16"),
]


def images_of(size, channels, dtype, count=3):
    return RANDOM.integers(0, np.iinfo(dtype).max, (count, *size, channels), dtype, endpoint=True)


def build(size, patch_size, channels, **options):
    encoder = VisionTransformer(
        size, patch_size, channels, embed_dim=16, depth=1, num_heads=2, pixel_mean=0.4, pixel_std=0.3
    )
    return MaskedAutoencoder(encoder, 16, 1, 2, mask_ratio=0.5, seed=0, **options)


def loss_by_hand(model, images, outputs):
    """The paper's loss of normalised patches, by loops over patches."""
    size, losses, mask = model.encoder.patch_size, [], np.asarray(outputs["mask"])
    pixels = (images / np.iinfo(images.dtype).max - 0.4) / 0.3
    for sample, image in enumerate(pixels):
        errors = []
        for patch in np.flatnonzero(mask[sample]):
            row, column = divmod(patch, images.shape[2] // size)
            values = image[row * size : (row + 1) * size, column * size : (column + 1) * size].ravel()
            target = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-6)
            errors.append(np.mean((np.asarray(outputs["prediction"])[sample, patch] - target) ** 2))
        losses.append(np.mean(errors))
    return np.mean(losses)


@pytest.mark.parametrize(("size", "patch_size", "channels", "dtype"), INPUTS)
def test_a_model_of_any_input_trains(size, patch_size, channels, dtype):
    images, model = images_of(size, channels, dtype), build(size, patch_size, channels)
    num_patches = size[0] * size[1] // patch_size**2
    outputs = model({"image": images, "noise": RANDOM.random((3, num_patches), "float32")})
    assert outputs["prediction"].shape == (3, num_patches, patch_size**2 * channels)
    loss = keras.ops.convert_to_numpy(model.compute_loss({"image": images}, None, outputs))
    np.testing.assert_allclose(loss, loss_by_hand(model, images, outputs), rtol=1e-4)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)  # tracing takes seconds
    before = [w.numpy() for w in model.trainable_weights]
    history = model.fit(images, batch_size=3, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    assert any(np.any(old != new.numpy()) for old, new in zip(before, model.trainable_weights, strict=True))


@pytest.mark.slow
def test_a_compiled_step_takes_16_bits():
    model = build((14, 28), 14, 13)
    model.compile(keras.optimizers.SGD(0.1), jit_compile=True)
    assert np.isfinite(model.fit(images_of((14, 28), 13, "uint16"), batch_size=3, verbose=0).history["loss"][0])


def test_8_bits_are_divided_by_255_as_they_always_were():
    images, encoder = images_of((8, 12), 3, "uint8"), VisionTransformer((8, 12), 4, embed_dim=16, depth=0, num_heads=2)
    mean, std = (np.array(x, "float32") for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = (images.astype("float32") / np.float32(255) - mean) / std
    for given in (images, images.astype("float32")):
        np.testing.assert_allclose(encoder.normalized_images(keras.ops.convert_to_tensor(given)), expected, rtol=1e-6)


def test_16_bits_mean_what_8_bits_mean():
    images, encoder = images_of((8, 12), 5, "uint8"), build((8, 12), 4, 5).encoder
    wide = images.astype("uint16") * 257  # 65535 / 255
    np.testing.assert_allclose(encoder.normalized_images(wide), encoder.normalized_images(images), atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_denormalized_patches_are_the_image(dtype):
    images, encoder = images_of((8, 12), 4, dtype), build((8, 12), 4, 4).encoder
    found = encoder.denormalized_images(encoder.normalized_patches(images), dtype)
    np.testing.assert_array_equal(found, images)


@pytest.mark.parametrize(("size", "patch_size", "channels", "dtype"), INPUTS)
def test_a_reconstruction_keeps_what_is_visible(size, patch_size, channels, dtype, tmp_path):
    images, model = images_of(size, channels, dtype), build(size, patch_size, channels)
    num_patches = size[0] * size[1] // patch_size**2
    noise = RANDOM.random((3, num_patches), "float32")
    masked, filled = (np.asarray(x) for x in model.reconstruct({"image": images, "noise": noise}))
    mask = np.asarray(model({"image": images, "noise": noise})["mask"])
    mask = mask.reshape(3, size[0] // patch_size, -1).repeat(patch_size, axis=1).repeat(patch_size, axis=2)
    for found in (masked, filled):
        assert found.shape == images.shape
        shares = found / np.iinfo(found.dtype).max - images / np.iinfo(dtype).max
        assert np.abs(shares[mask == 0]).max() <= 0.5 / 255 + 1e-6


def test_a_figure_of_many_channels_is_drawn(tmp_path):
    panels = reconstruct.make_panels([build((8, 12), 4, 13)], images_of((8, 12), 13, "uint16"))
    reconstruct.draw(panels, "a note", tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.format == "PNG"


def test_pixel_statistics_of_another_number_of_channels_are_refused():
    with pytest.raises(ValueError, match="pixel_mean needs 1 or channels=13 values"):
        VisionTransformer(8, 4, 13, embed_dim=16, depth=1, num_heads=2)
