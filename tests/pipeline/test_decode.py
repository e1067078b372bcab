import io

import numpy as np
import pytest
import tensorflow as tf
from fixtures.shard_sets import encode
from PIL import Image

from pipeline.decode import decode_crop, decode_image

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(PIXELS[:5, :6]).resize((60, 50), Image.Resampling.BICUBIC))
BOX = (3, 5, 11, 13)


def crop(pixels, box=BOX):
    top, left, height, width = box
    return pixels[top : top + height, left : left + width]


def decode_box(encoded, channels, box=BOX):
    return decode_crop(encoded, lambda height, width: tf.constant(box), channels).numpy()


@pytest.mark.parametrize("kind, options", [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_decode_exactly(kind, options):
    encoded = encode(PIXELS, kind, **options)
    np.testing.assert_array_equal(decode_image(encoded, 3), PIXELS)
    np.testing.assert_array_equal(decode_box(encoded, 3), crop(PIXELS))
    assert decode_image(encoded, 1).shape == (20, 24, 1)


@pytest.mark.parametrize("kind, options", [("PNG", {}), ("WEBP", {"lossless": True})])
def test_transparency_is_dropped(kind, options):
    encoded = encode(np.dstack([PIXELS, np.full((20, 24), 200, np.uint8)]), kind, **options)
    np.testing.assert_array_equal(decode_image(encoded, 3), PIXELS)


def test_grey_png_decodes_to_one_channel_or_three_equal_ones():
    encoded = encode(PIXELS[..., 0])
    np.testing.assert_array_equal(decode_image(encoded, 1)[..., 0], PIXELS[..., 0])
    np.testing.assert_array_equal(decode_image(encoded, 3), PIXELS[..., :1].repeat(3, axis=2))


def test_16_bit_png_keeps_the_high_byte():
    encoded = encode(PIXELS[..., 0].astype(np.uint16) * 256 + 17)
    np.testing.assert_array_equal(decode_image(encoded, 1)[..., 0], PIXELS[..., 0])


@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_decodes_as_pillow_does(subsampling):
    encoded = encode(SMOOTH, "JPEG", quality=90, subsampling=subsampling)
    expected = np.asarray(Image.open(io.BytesIO(encoded)))
    np.testing.assert_array_equal(decode_image(encoded, 3), expected)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_crop_is_a_crop_of_the_whole(subsampling):
    encoded = encode(SMOOTH, "JPEG", quality=90, subsampling=subsampling)
    whole = decode_image(encoded, 3).numpy()
    for box in [BOX, (0, 0, 50, 60), (0, 0, 17, 17), (33, 1, 17, 59), (17, 16, 16, 15), (49, 59, 1, 1)]:
        np.testing.assert_array_equal(decode_box(encoded, 3, box), crop(whole, box))
    np.testing.assert_array_equal(decode_box(encoded, 1), crop(decode_image(encoded, 1).numpy()))


def test_grey_and_cmyk_jpegs_decode_to_three_channels():
    grey = encode(SMOOTH[..., 0], "JPEG", quality=90)
    assert np.ptp(decode_image(grey, 3), axis=2).max() == 0
    buffer = io.BytesIO()
    Image.fromarray(SMOOTH).convert("CMYK").save(buffer, "JPEG", quality=95)
    difference = decode_image(buffer.getvalue(), 3).numpy().astype(int) - SMOOTH
    assert np.abs(difference).mean() < 4


def test_decoding_runs_in_dataset_map():
    # A PNG among JPEGs: the branch is chosen for each image.
    images = [encode(SMOOTH, "JPEG"), encode(SMOOTH, "PNG"), encode(SMOOTH, "WEBP", lossless=True)]
    dataset = tf.data.Dataset.from_tensor_slices(images).map(
        lambda encoded: (decode_image(encoded, 3), decode_crop(encoded, lambda h, w: tf.constant(BOX), 3))
    )
    for encoded, (whole, part) in zip(images, dataset, strict=True):
        np.testing.assert_array_equal(whole, decode_image(encoded, 3))
        np.testing.assert_array_equal(part, decode_box(encoded, 3))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_cut_image_raises(kind):
    encoded = encode(PIXELS, kind)
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_image(encoded[: len(encoded) // 2], 3)


@pytest.mark.parametrize("encoded", [b"", b"RIFF", b"no image"])
def test_what_is_no_image_raises(encoded):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_image(encoded, 3)


def test_an_animated_webp_is_refused():
    # TensorFlow's operation corrupts memory on it, and the process dies.
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    for decode in (decode_image, tf.function(decode_image)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="An animated WebP cannot be decoded"):
            decode(tf.constant(file.getvalue()), 3)
