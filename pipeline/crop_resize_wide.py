"""The resize of a box for images of 16 bits, and for those of very many channels: `crop_resize` in floating point.

The filter is that of `crop_resize`, Pillow's antialiased bicubic, in the arithmetic of Pillow's mode "F": nothing is
rounded or clipped between the two passes, and at the end, once, to the type of the image. (8 bits a channel keep
Pillow's other arithmetic, which rounds in between.) Sums are float32, so a result can differ by one level where it lies
half-way between two.

The vertical pass comes first, as a sum of whole rows, so that the slower horizontal one has fewer of them to do.
Compiled by Numba on first use. This module imports no TensorFlow.
"""

import numpy as np

from pipeline.bicubic_taps import bicubic_taps
from pipeline.compiled import compiled


@compiled
def _weights(in_size, out_size):
    first, count, weights = bicubic_taps(in_size, out_size)
    return first, count, weights.astype(np.float32)


@compiled
def wide_workspace_bytes(width, channels, out_height):
    """Bytes that `crop_resize_wide` needs for a box of `width` pixels at most."""
    return 4 * out_height * width * channels


@compiled
def crop_resize_wide(image, box, flip, workspace, out):
    """Resizes a box of an image, antialiased bicubic, as Pillow resizes each channel in mode "F", rounded and clipped.

    Args:
        image: uint8 or uint16 (H, W, C).
        box: int64 (4,), (top, left, height, width) in pixels, inside the image.
        flip: whether left and right are exchanged.
        workspace: uint8, `wide_workspace_bytes` of the box or more, aligned for float32.
        out: (height, width, C) of the image's type, receives the result.
    """
    top, left, height, width = box
    out_height, out_width, channels = out.shape
    rows = image.reshape(image.shape[0], image.shape[1] * channels)
    rows = rows[top : top + height, left * channels : (left + width) * channels]
    needed = wide_workspace_bytes(width, channels, out_height)
    sums = workspace[:needed].view(np.float32).reshape(out_height, width * channels)
    _sum_rows(rows, _weights(height, out_height), sums)
    _sum_columns(sums, _weights(width, out_width), flip, out)


@compiled
def _sum_rows(rows, weights_of, sums):
    first, count, weights = weights_of
    for y in range(sums.shape[0]):
        target = sums[y]
        target[:] = 0
        for tap in range(count[y]):
            weight, row = weights[y, tap], rows[first[y] + tap]
            for x in range(target.shape[0]):
                target[x] += weight * np.float32(row[x])


@compiled
def _sum_columns(rows, weights_of, flip, out):
    # The horizontal pass: (out height, width * channels) to the pixels of `out`, mirrored or not.
    first, count, weights = weights_of
    width, channels = out.shape[1], out.shape[2]
    top = np.float32(255 if out.itemsize == 1 else 65535)
    sums = np.empty(channels, np.float32)
    for y in range(out.shape[0]):
        row = rows[y]
        for x in range(width):
            sums[:] = 0
            for tap in range(count[x]):
                weight, begin = weights[x, tap], (first[x] + tap) * channels
                for channel in range(channels):
                    sums[channel] += weight * row[begin + channel]
            pixel = out[y, width - 1 - x if flip else x]
            for channel in range(channels):
                value = min(max(sums[channel], np.float32(0)), top)
                pixel[channel] = int(value + np.float32(0.5))


def resize_wide(image: np.ndarray, size: tuple[int, int], *, box=None, flip: bool = False) -> np.ndarray:
    """`crop_resize_wide` into a new array.

    Args:
        image: uint8 or uint16 (H, W, C).
        size: (height, width) in pixels.
        box: (top, left, height, width); None takes the whole image.
        flip: whether left and right are exchanged.

    Returns:
        (height, width, C), of the image's type.
    """
    box = np.array((0, 0, *image.shape[:2]) if box is None else box, np.int64)
    out = np.empty((*size, image.shape[2]), image.dtype)
    workspace = np.empty(wide_workspace_bytes(int(box[3]), image.shape[2], size[0]), np.uint8)
    crop_resize_wide(np.ascontiguousarray(image), box, flip, workspace, out)
    return out
