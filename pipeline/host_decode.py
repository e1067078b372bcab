"""Encoded bytes to pixels without TensorFlow: libjpeg-turbo through simplejpeg, other pictures through Pillow.

JPEG is decoded with the accurate DCT and smooth chroma upsampling, as everywhere in this project. What simplejpeg
refuses (CMYK, harmless faults such as stray bytes between markers) is given to Pillow, which has the last word on
what is damaged. Transparency is dropped, 16-bit PNGs become 8-bit, CMYK becomes RGB. An animated WebP is refused, as
in the graph. simplejpeg and Pillow work without Python's lock. Arrays (`.npy`) are used where they lie; nothing of them
is converted, so their channels and their type must be those that are asked for. This module imports no TensorFlow.
"""

import io

import numpy as np
import simplejpeg
from PIL import Image

from pipeline.array_files import ArrayKind, is_array, only_arrays_have, read_array
from pipeline.thread_buffer import ThreadBuffer

_JPEG_START = b"\xff\xd8\xff"
_FORMATS = ("JPEG", "PNG", "WEBP")
# Above this Pillow refuses every image, and TensorFlow every JPEG.
MAX_PIXELS = (2**29 - 1) // 3


class DecodeError(ValueError):
    """Bytes that are no whole image."""


_pixels_of_thread = ThreadBuffer(first=3 << 20, largest=3 << 25)


def decode_image(encoded: bytes | memoryview, channels: int, dtype: str = "uint8") -> np.ndarray:
    """Decodes an image.

    Args:
        encoded: a JPEG, PNG, WebP or array.
        channels: 1 (grey) or 3 (RGB); of an array, its own.
        dtype: "uint8"; of an array, its own.

    Returns:
        (H, W, channels) of `dtype`. Of a JPEG it lies in a buffer of the thread, until the thread's next call; of an
        array in `encoded`.

    Raises:
        DecodeError: no such image, or a damaged one; says what the decoder says.
    """
    if is_array(encoded) or only_arrays_have(channels, dtype):
        return _decode_array(encoded, ArrayKind(dtype, channels))
    if encoded[:3] == _JPEG_START:
        try:
            height, width, kind, _ = simplejpeg.decode_jpeg_header(encoded)
            # What is larger, or damaged so that it says so, Pillow refuses before it takes the memory.
            if kind != "CMYK" and height * width <= MAX_PIXELS:
                return simplejpeg.decode_jpeg(
                    encoded,
                    "RGB" if channels == 3 else "GRAY",
                    fastdct=False,
                    fastupsample=False,
                    buffer=_pixels_of_thread.of_size(height * width * channels),
                )
        except ValueError:
            pass
    return _decode_with_pillow(encoded, channels)


def _decode_array(encoded: bytes | memoryview, expected: ArrayKind) -> np.ndarray:
    try:
        pixels = read_array(encoded)
    except ValueError as error:
        raise DecodeError(f"{error}; expected an array, {expected}") from None
    received = ArrayKind(pixels.dtype.name, pixels.shape[2])
    if received != expected:
        raise DecodeError(f"it is an array, {received}, expected {expected}")
    return pixels


def _decode_with_pillow(encoded: bytes | memoryview, channels: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            if getattr(image, "n_frames", 1) > 1 and image.format == "WEBP":
                raise DecodeError("an animated WebP")
            image.load()
            if image.mode.startswith("I"):
                grey = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
                return _pixels(grey, channels)
            return _pixels(image, channels)
    except Image.UnidentifiedImageError:
        raise DecodeError("expected a JPEG, PNG or WebP") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DecodeError(str(error)) from None


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return pixels if channels == 3 else pixels[:, :, np.newaxis]
