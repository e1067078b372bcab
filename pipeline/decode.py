"""Encoded bytes to pixels: JPEG, PNG, WebP and arrays (`.npy`), whole or only a crop of them.

The format is read from the first bytes, never from a file name: ImageNet holds a PNG called `.JPEG`, on which
TensorFlow's JPEG operations that look at a part of the file fail.

JPEG is decoded with the accurate DCT and smooth chroma upsampling, as Pillow does (TensorFlow's default is
the fast DCT). Transparency is dropped, 16-bit PNGs become 8-bit, CMYK becomes RGB. What TensorFlow cannot do
raises: a CMYK JPEG as one channel, an animated WebP. Of an array nothing is converted: its channels and its type must
be those that are asked for.
"""

import tensorflow as tf

from pipeline.array_files import only_arrays_have
from pipeline.graph_arrays import decode_array, is_array

_JPEG = {"fancy_upscaling": True, "dct_method": "INTEGER_ACCURATE"}


def is_jpeg(encoded):
    return tf.equal(tf.strings.substr(encoded, 0, 3), b"\xff\xd8\xff")


def is_png(encoded):
    return tf.equal(tf.strings.substr(encoded, 0, 8), b"\x89PNG\r\n\x1a\n")


def is_webp(encoded):
    # RIFF, four bytes of length, WEBP. Padding makes shorter strings safe to cut.
    head = tf.strings.substr(tf.strings.join([encoded, b"\0" * 12]), 0, 12)
    return tf.logical_and(
        tf.equal(tf.strings.substr(head, 0, 4), b"RIFF"), tf.equal(tf.strings.substr(head, 8, 4), b"WEBP")
    )


def decode_image(encoded, channels: int, dtype: str = "uint8"):
    """Decodes a whole image.

    Args:
        encoded: string scalar.
        channels: 1 (grey) or 3 (RGB); of an array, its own.
        dtype: "uint8"; of an array, its own.

    Returns:
        (H, W, channels) of `dtype`.

    Raises:
        tf.errors.InvalidArgumentError: not a JPEG, PNG, WebP or such an array, or a damaged one.
    """
    if only_arrays_have(channels, dtype):
        return decode_array(encoded, channels, dtype)
    image = tf.cond(
        is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=channels, **_JPEG),
        lambda: _decode_other(encoded, channels),
    )
    return tf.ensure_shape(image, (None, None, channels))


def decode_crop(encoded, choose_box, channels: int, dtype: str = "uint8"):
    """Decodes a crop of an image; of a JPEG, only that part of it.

    Args:
        encoded: string scalar.
        choose_box: function from (height, width), int32 scalars, to a box: int32 (4,), (top, left, height,
            width) in pixels, inside the image.
        channels, dtype: as for `decode_image`.

    Returns:
        (box height, box width, channels) of `dtype`.

    Raises:
        tf.errors.InvalidArgumentError: not a JPEG, PNG, WebP or such an array, or a damaged one.
    """

    def crop_jpeg():
        shape = tf.image.extract_jpeg_shape(encoded)
        top, left, height, width = tf.unstack(choose_box(shape[0], shape[1]))
        # Smooth chroma upsampling looks at one neighbour on either side: without it the crop's outer columns
        # would differ from those of the whole image.
        begin, end = tf.maximum(left - 1, 0), tf.minimum(left + width + 1, shape[1])
        wider = tf.image.decode_and_crop_jpeg(
            encoded, tf.stack([top, begin, height, end - begin]), channels=channels, **_JPEG
        )
        return tf.slice(wider, [0, left - begin, 0], [height, width, channels])

    def crop(image):
        shape = tf.shape(image)
        top, left, height, width = tf.unstack(choose_box(shape[0], shape[1]))
        return tf.slice(image, [top, left, 0], [height, width, channels])

    if only_arrays_have(channels, dtype):
        return crop(decode_array(encoded, channels, dtype))
    return tf.cond(is_jpeg(encoded), crop_jpeg, lambda: crop(_decode_other(encoded, channels)))


def _decode_other(encoded, channels: int):
    # decode_png raises on what is neither.
    return tf.cond(
        is_webp(encoded),
        lambda: _decode_webp(encoded, channels),
        lambda: tf.cond(
            is_array(encoded),
            lambda: decode_array(encoded, channels, "uint8"),
            lambda: tf.io.decode_png(encoded, channels=channels),
        ),
    )


def _decode_webp(encoded, channels: int):
    # TensorFlow 2.21 writes outside its memory when it decodes an animated WebP.
    check = tf.debugging.Assert(tf.logical_not(_is_animated_webp(encoded)), ["An animated WebP cannot be decoded"])
    with tf.control_dependencies([check]):
        # Asked for 3 channels, the operation refuses images with transparency; asked for what is there, never.
        image = tf.io.decode_webp(encoded, channels=0)[0, :, :, :3]  # (H, W, 3)
    return tf.image.rgb_to_grayscale(image) if channels == 1 else image


def _is_animated_webp(encoded):
    # The first chunk of an extended file says so, in one bit of its flags.
    head = tf.strings.substr(tf.strings.join([encoded, b"\0" * 21]), 12, 9)
    flags = tf.io.decode_raw(head, tf.uint8)[8]
    return tf.logical_and(
        tf.equal(tf.strings.substr(head, 0, 4), b"VP8X"), tf.not_equal(tf.bitwise.bitwise_and(flags, 2), 0)
    )
