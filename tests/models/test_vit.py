import math

import numpy as np
import pytest
from keras import ops

from keras_mae.models import VIT_SIZES, VisionTransformer, vit

TINY = {"image_size": (8, 12), "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}


def build(**overrides):
    model = VisionTransformer(**{**TINY, **overrides})
    model.build()
    return model


def images(channels=3):
    return np.random.randint(0, 256, (2, 8, 12, channels)).astype("uint8")


def test_pixels_are_normalised_per_channel_and_cut_into_patches():
    model, x = build(pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.5, 0.6, 0.7)), images()
    normalized = (x.astype("float64") / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    patches = ops.convert_to_numpy(model.normalized_patches(x))
    assert patches.dtype == "float32"
    expected = [normalized[:, y : y + 4, x : x + 4].reshape(2, 48) for y in (0, 4) for x in (0, 4, 8)]
    np.testing.assert_allclose(patches, np.stack(expected, axis=1), atol=1e-6)


def test_float_images_are_on_the_same_scale():
    x = images()
    np.testing.assert_array_equal(*(build().normalized_patches(a) for a in (x, x.astype("float32"))))


@pytest.mark.parametrize("channels", [1, 5])
def test_other_numbers_of_channels(channels):
    model = build(channels=channels, pixel_mean=0.5, pixel_std=0.25)
    assert model.pixel_mean == channels * (0.5,)
    assert model(images(channels)).shape == (2, 7, 8)


def test_given_ids_the_patches_get_their_own_positions():
    model = build(depth=0)  # no block mixes the tokens
    patches = model.normalized_patches(images())
    everything = ops.convert_to_numpy(model.encode(patches))
    ids = np.array([[4, 1, 2], [0, 5, 3]], "int32")
    visible = np.take_along_axis(ops.convert_to_numpy(patches), ids[:, :, None], axis=1)
    some = ops.convert_to_numpy(model.encode(visible, ids))
    np.testing.assert_allclose(some[:, 0], everything[:, 0], atol=1e-6)  # class token, in front
    np.testing.assert_allclose(some[:, 1:], np.take_along_axis(everything[:, 1:], ids[:, :, None], 1), atol=1e-6)


def test_order_of_the_given_patches_does_not_matter_to_the_class_token():
    model = build()
    patches, order = ops.convert_to_numpy(model.normalized_patches(images())), np.array([3, 0, 5, 1, 4, 2])
    tokens = ops.convert_to_numpy(model.encode(patches))
    shuffled = ops.convert_to_numpy(model.encode(patches[:, order], np.stack([order, order])))
    np.testing.assert_allclose(shuffled[:, 0], tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(shuffled[:, 1:], tokens[:, 1:][:, order], atol=1e-5)


def test_drop_path_rates_grow_linearly_from_zero():
    rates = [block.drop_path_rate for block in build(depth=4, drop_path_rate=0.3).blocks]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_drop_noise_of_the_batch_reaches_its_block(dtype):
    model, x = build(drop_path_rate=0.5, dtype=dtype), images()
    # Columns: attention and MLP of block 0 (rate 0), then of block 1 (rate .5). Sample 0 drops both branches
    # of block 1; in bfloat16 its noise would be rounded up to .5, and kept.
    noise = np.array([[0.9, 0.9, 0.49999, 0.49999], [0, 0, 0.5, 0.5]], "float32")
    y = ops.convert_to_numpy(ops.cast(model({"image": x, "drop_noise": noise}, training=True), "float32"))
    skipped = build(depth=1, dtype=dtype)
    skipped.set_weights([w for w in model.get_weights()[:16]] + model.get_weights()[-2:])
    expected = ops.convert_to_numpy(ops.cast(skipped(x), "float32"))
    np.testing.assert_allclose(y[0], expected[0], atol=1e-5)
    assert np.abs(y[1] - expected[1]).max() > 0.1


def test_final_norm_can_be_left_out():
    assert len(build().weights) - len(build(final_norm=False).weights) == 2


@pytest.mark.parametrize("name", VIT_SIZES)
def test_usual_sizes_have_heads_that_fit(name):
    size = VIT_SIZES[name]
    assert size["embed_dim"] % size["num_heads"] == 0
    assert 224 % size.get("patch_size", 16) == 0


def test_usual_size_with_overrides():
    model = vit("huge", image_size=(28, 42), depth=1)
    assert (model.embed_dim, model.num_heads, model.patch_size, model.grid_size) == (1280, 16, 14, (2, 3))


def test_unknown_size_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="'base', 'huge'.*Received: 'giant'"):
        vit("giant")


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (
            {"image_size": (8, 10)},
            r"multiples of the patch size. Received: image_size=\(8, 10\), patch_size=4",
        ),
        ({"image_size": 0}, r"positive multiples"),
        ({"num_heads": 3}, "Received: width=8, num_heads=3"),
        ({"embed_dim": 6}, "divisible by 4.*Received: embed_dim=6"),
        ({"pixel_mean": (0.5, 0.5)}, r"pixel_mean needs 1 or channels=3 values. Received: \(0.5, 0.5\)"),
        ({"channels": 1}, "pixel_mean needs 1 or channels=1 values"),
        ({"pixel_std": (0.2, 0, 0.2)}, r"pixel_std must be above 0.*Received: \(0.2, 0.0, 0.2\)"),
        ({"pixel_std": -0.1}, "pixel_std must be above 0"),
        ({"pixel_std": math.nan}, "pixel_std must be finite numbers"),
        ({"pixel_mean": math.inf}, "pixel_mean must be finite numbers"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        VisionTransformer(**{**TINY, **overrides})


@pytest.mark.parametrize("shape", [(2, 12, 8, 3), (2, 8, 12, 1), (2, 16, 16, 3)])
def test_image_of_another_shape_is_an_error(shape):
    with pytest.raises(ValueError, match=r"Expected images of shape \(batch, 8, 12, 3\)(.|\n)*Received: \(2, "):
        build()(np.zeros(shape, "uint8"))
