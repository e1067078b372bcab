"""The random resized crop of pixels: which box, and Pillow's antialiased bicubic resize of it, several times as fast.

The arithmetic is Pillow 13's to the bit: coefficients of 22 bits after the point, one pass along each axis with
rounding and clipping to 8 bits in between, the vertical pass first where the height shrinks by more than twice as many
pixels as the width. What differs is the memory layout. The vertical pass is a sum of whole rows, which compilers turn
into wide vector instructions; so the horizontal pass is done on transposed tiles of the crop, as a sum of rows, too.

Compiled by Numba on first use (some seconds, once a machine where its cache can be written). No function here holds
Python's lock while it works on pixels. This module imports no TensorFlow.

Boxes are (top, left, height, width) in pixels.
"""

import math
from typing import NamedTuple

import numpy as np

from pipeline.bicubic_taps import bicubic_taps
from pipeline.compiled import compiled
from pipeline.compiled_words import read_word, write_word

CROP_TRIES = 10
LOG_RATIO = math.log(4 / 3)  # aspect ratios are log-uniform from 3/4 to 4/3
# Bytes of a row of the tile in which crops are transposed: 64 RGB pixels, or 192 grey ones.
TILE = 192
# From one row of the tile to the next: with room for a word's last byte, and no power of 2 among its divisors above 8,
# or rows would push each other out of the processor's cache.
_TILE_ROW = TILE + 8
_BITS = 22
_HALF = 1 << (_BITS - 1)


@compiled
def choose_crop(height, width, uniforms, min_area, box):
    """RandomResizedCrop's choice of a box, as torchvision makes it (see `views.random_crop_box`).

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        uniforms: float64 (4 * CROP_TRIES,), draws from [0, 1): per try area, ratio, top, left.
        min_area: lower bound of the crop's share of the area.
        box: int64 (4,), receives the box.
    """
    for first in range(0, 4 * CROP_TRIES, 4):
        area = (min_area + (1.0 - min_area) * uniforms[first]) * height * width
        ratio = math.exp(-LOG_RATIO + 2 * LOG_RATIO * uniforms[first + 1])
        w, h = np.rint(math.sqrt(area * ratio)), np.rint(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            box[0] = int(uniforms[first + 2] * (height - h + 1))
            box[1] = int(uniforms[first + 3] * (width - w + 1))
            box[2], box[3] = int(h), int(w)
            return
    ratio = width / height  # nothing fits: the central crop of the nearest allowed ratio
    h = np.rint(width * 4 / 3) if ratio < 3 / 4 else float(height)
    w = np.rint(height * 4 / 3) if ratio > 4 / 3 else float(width)
    box[0], box[1] = int((height - h) // 2), int((width - w) // 2)
    box[2], box[3] = int(h), int(w)


@compiled
def choose_clamped_crop(height, width, uniforms, min_area, box):
    """One try of RandomResizedCrop whose sides are cut to the image's: what the linear probe trains on.

    Arguments as for `choose_crop`; uses the first 4 draws.
    """
    area = (min_area + (1.0 - min_area) * uniforms[0]) * height * width
    ratio = math.exp(-LOG_RATIO + 2 * LOG_RATIO * uniforms[1])
    h, w = min(np.rint(math.sqrt(area / ratio)), height), min(np.rint(math.sqrt(area * ratio)), width)
    h, w = max(h, 1.0), max(w, 1.0)
    box[0], box[1] = int(uniforms[2] * (height - h + 1)), int(uniforms[3] * (width - w + 1))
    box[2], box[3] = int(h), int(w)


class FixedCrop(NamedTuple):
    """A crop of fixed size: as if the image were resized to cover an enlarged view, and the view cut out of that.

    Attributes:
        share: the view's side over the enlarged view's, at most 1.
        aspect: the view's width over its height.
        centered: whether the box is the central one; else it is placed uniformly.
    """

    share: float
    aspect: float
    centered: bool


@compiled
def choose_fixed_crop(height, width, uniforms, fixed, box):
    """The box of a `FixedCrop`; other arguments as for `choose_crop`; uses the third and the fourth draw."""
    h = max(np.rint(fixed.share * min(height, width / fixed.aspect)), 1.0)
    w = max(np.rint(fixed.share * min(width, height * fixed.aspect)), 1.0)
    if fixed.centered:
        box[0], box[1] = int((height - h) // 2), int((width - w) // 2)
    else:
        box[0], box[1] = int(uniforms[2] * (height - h + 1)), int(uniforms[3] * (width - w + 1))
    box[2], box[3] = int(h), int(w)


@compiled
def _weights(in_size, out_size):
    # `bicubic_taps`, weights in whole numbers.
    first, count, weights = bicubic_taps(in_size, out_size)
    whole = np.empty(weights.shape, np.int32)
    for pixel in range(out_size):
        for tap in range(weights.shape[1]):
            value = weights[pixel, tap] * (1 << _BITS)
            whole[pixel, tap] = int(value - 0.5) if value < 0 else int(value + 0.5)
    return first, count, whole


@compiled
def _sum_rows(rows, columns, weights_of, out):
    # out[y, :columns] = the weighted sum of rows, rounded and clipped to 8 bits. Four rows at a time, so that sums are
    # read and written less often.
    first, count, weights = weights_of
    sums = np.empty(columns, np.int32)
    for y in range(out.shape[0]):
        sums[:] = _HALF
        fours = count[y] // 4
        for four in range(fours):
            tap = 4 * four
            row = first[y] + tap
            w0, w1, w2, w3 = weights[y, tap], weights[y, tap + 1], weights[y, tap + 2], weights[y, tap + 3]
            r0, r1, r2, r3 = rows[row], rows[row + 1], rows[row + 2], rows[row + 3]
            for x in range(sums.shape[0]):
                sums[x] += w0 * np.int32(r0[x]) + w1 * np.int32(r1[x]) + w2 * np.int32(r2[x]) + w3 * np.int32(r3[x])
        for tap in range(4 * fours, count[y]):
            weight, row = weights[y, tap], rows[first[y] + tap]
            for x in range(sums.shape[0]):
                sums[x] += weight * np.int32(row[x])
        target = out[y]
        for x in range(sums.shape[0]):
            target[x] = min(max(sums[x] >> _BITS, 0), 255)


@compiled
def _resize_columns(pixels, width, channels, weights_of, flip, tile, resized, out):
    # The horizontal pass: (rows, width * channels) to the rows of `out`, mirrored or not. Some rows at a time are
    # transposed into `tile`, which stays in the processor's cache, summed as rows, and transposed back.
    for begin in range(0, pixels.shape[0], TILE // channels):
        rows = min(TILE // channels, pixels.shape[0] - begin)
        _put_rows(pixels[begin : begin + rows], width, channels, tile)
        _sum_rows(tile, TILE, weights_of, resized)
        _take_rows(resized, channels, flip, out[begin : begin + rows])


@compiled
def _put_rows(pixels, width, channels, tile):
    # Transposes rows of pixels. RGB goes by words: the fourth byte is overwritten by the next pixel of the tile.
    rows = pixels.shape[0]
    if channels == 3:
        for x in range(width - 1):
            for y in range(rows):
                write_word(tile, x * tile.strides[0] + 3 * y, read_word(pixels, y * pixels.strides[0] + 3 * x))
    for x in range(width - 1 if channels == 3 else 0, width):
        for y in range(rows):
            for channel in range(channels):
                tile[x, y * channels + channel] = pixels[y, x * channels + channel]


@compiled
def _take_rows(tile, channels, flip, pixels):
    # The inverse of `_put_rows`, with left and right exchanged or not.
    rows, width = pixels.shape[0], tile.shape[0]
    if channels == 3:
        for place in range(width - 1):
            x = width - 1 - place if flip else place
            for y in range(rows):
                write_word(pixels, y * pixels.strides[0] + 3 * place, read_word(tile, x * tile.strides[0] + 3 * y))
    for place in range(width - 1 if channels == 3 else 0, width):
        x = width - 1 - place if flip else place
        for y in range(rows):
            for channel in range(channels):
                pixels[y, place * channels + channel] = tile[x, y * channels + channel]


@compiled
def _part(workspace, begin, rows, columns):
    return workspace[begin : begin + rows * columns].reshape(rows, columns)


@compiled
def workspace_bytes(height, width, channels, out_height, out_width):
    """Bytes that `crop_resize` needs for a box of (height, width) at most."""
    return channels * max(height * out_width, out_height * width) + _TILE_ROW * (width + out_width)


@compiled
def crop_resize(image, box, flip, workspace, out):
    """Resizes a box of an image, antialiased bicubic, as `image.crop(box).resize(size, BICUBIC)` of Pillow does.

    Args:
        image: uint8 (H, W, C).
        box: int64 (4,), inside the image.
        flip: whether left and right are exchanged.
        workspace: uint8, `workspace_bytes` of the box or more.
        out: uint8 (height, width, C), receives the result.
    """
    top, left, height, width = box
    out_height, out_width, channels = out.shape
    crop = image.reshape(image.shape[0], image.shape[1] * channels)
    crop = crop[top : top + height, left * channels : (left + width) * channels]
    vertical, horizontal = _weights(height, out_height), _weights(width, out_width)
    out_rows = out.reshape(out_height, out_width * channels)
    tile = _part(workspace, 0, width, _TILE_ROW)
    resized = _part(workspace, tile.size, out_width, _TILE_ROW)
    rest = tile.size + resized.size
    if height > out_height and height - out_height > 2 * (width - out_width):
        shrunk = _part(workspace, rest, out_height, width * channels)
        _sum_rows(crop, width * channels, vertical, shrunk)
        _resize_columns(shrunk, width, channels, horizontal, flip, tile, resized, out_rows)
    else:
        narrow = _part(workspace, rest, height, out_width * channels)
        _resize_columns(crop, width, channels, horizontal, flip, tile, resized, narrow)
        _sum_rows(narrow, out_width * channels, vertical, out_rows)


def resize(image: np.ndarray, size: tuple[int, int], *, box=None, flip: bool = False) -> np.ndarray:
    """`crop_resize` into a new array.

    Args:
        image: uint8 (H, W, C).
        size: (height, width) in pixels.
        box: (top, left, height, width); None takes the whole image.
        flip: whether left and right are exchanged.

    Returns:
        uint8 (height, width, C).
    """
    box = np.array((0, 0, *image.shape[:2]) if box is None else box, np.int64)
    out = np.empty((*size, image.shape[2]), np.uint8)
    workspace = np.empty(workspace_bytes(int(box[2]), int(box[3]), image.shape[2], *size), np.uint8)
    crop_resize(np.ascontiguousarray(image), box, flip, workspace, out)
    return out
