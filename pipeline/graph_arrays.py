"""Arrays in `.npy` files to pixels, by TensorFlow itself; `array_files`, the same in Python, says what is taken."""

import numpy as np
import tensorflow as tf

from pipeline.array_files import C_ORDER, DESCR, DTYPES, MAGIC, MAX_HEADER_BYTES, SHAPE
from pipeline.graph_index import require

_AROUND = "(?s).*{}.*"


def is_array(encoded):
    """Whether a string scalar begins as `.npy` files do."""
    return tf.equal(tf.strings.substr(encoded, 0, len(MAGIC)), MAGIC)


def decode_array(encoded, channels: int, dtype: str):
    """Decodes an array.

    Args:
        encoded: string scalar.
        channels: that it must have.
        dtype: that it must have, "uint8" or "uint16".

    Returns:
        (H, W, channels) of `dtype`.

    Raises:
        tf.errors.InvalidArgumentError: no such array, or a damaged one.
    """
    offset, header = _header(encoded)
    descr = tf.strings.regex_replace(header, _AROUND.format(DESCR), r"\1")
    names = [name for name, kind in DTYPES.items() if kind == dtype]
    is_as_expected = (
        is_array(encoded)
        & tf.reduce_any(descr == tf.constant(names))
        & tf.strings.regex_full_match(header, _AROUND.format(C_ORDER))
        & tf.strings.regex_full_match(header, _AROUND.format(SHAPE))
    )
    with tf.control_dependencies([require(is_as_expected, f"Expected a {dtype} array in C order. Received: ", header)]):
        # "64 48 13", or "64 48 " where there is one channel
        sides = tf.strings.split(tf.strings.regex_replace(header, _AROUND.format(SHAPE), r"\1 \2 \3"))
    sides = tf.concat([tf.strings.to_number(sides, tf.int64), [1]], axis=0)[:3]  # (3,): height, width, channels
    expected = tf.reduce_prod(sides) * np.dtype(dtype).itemsize
    received = tf.cast(tf.strings.length(encoded) - offset, tf.int64)
    is_whole = require(
        (sides[2] == channels) & (expected == received) & (expected > 0),
        *(f"Expected {channels} channels, and {dtype} for all pixels. Received: ", received, " bytes for ", header),
    )
    with tf.control_dependencies([is_whole]):
        numbers = tf.io.decode_raw(tf.strings.substr(encoded, offset, tf.strings.length(encoded)), dtype)
    return tf.ensure_shape(tf.reshape(numbers, sides), (None, None, channels))


def _header(encoded):
    # Where the numbers begin, and the text before them. Padding makes shorter strings safe to cut.
    head = tf.strings.substr(tf.strings.join([tf.strings.substr(encoded, 0, 12), b"\0" * 12]), 6, 6)
    version, _, *length = tf.unstack(tf.cast(tf.io.decode_raw(head, tf.uint8), tf.int32), num=6)
    short = length[0] + 256 * length[1]
    is_first = version == 1
    start = tf.where(is_first, 10, 12)
    size = tf.where(is_first, short, short + 65536 * (length[2] + 256 * length[3]))
    size = tf.clip_by_value(size, 0, MAX_HEADER_BYTES)
    header = tf.strings.substr(encoded, tf.minimum(start, tf.strings.length(encoded)), size)
    return start + size, tf.strings.unicode_transcode(header, "UTF-8", "UTF-8")  # to be said, whatever it holds
