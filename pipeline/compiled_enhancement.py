"""Pillow's ImageEnhance, compiled: blends of an image with its grey, its mean grey, black, or its smoothed self.

A blend is plain + factor (level - plain) in single precision, rounded down and clipped: Pillow's own arithmetic.
"""

import numpy as np

from pipeline.compiled import compiled

_HALF = np.float32(0.5)
_SIDE, _CENTRE = np.float32(1) / np.float32(13), np.float32(5) / np.float32(13)


@compiled
def blend(plain, level, factor):
    """From plain, at factor 0, over level, at factor 1, on to its opposite: 0 .. 255."""
    plain = np.float32(plain)
    return np.uint8(min(max(plain + np.float32(factor) * (np.float32(level) - plain), np.float32(0)), np.float32(255)))


@compiled
def grey_level(red, green, blue):
    """Luma of ITU-R 601, as Pillow rounds it: 0 .. 255."""
    return (np.int32(red) * 19595 + np.int32(green) * 38470 + np.int32(blue) * 7471 + 0x8000) >> 16


@compiled
def mean_grey(image):
    """The rounded mean of the grey image."""
    levels, total = image.reshape(image.size), 0
    if image.shape[2] == 1:
        for i in range(levels.shape[0]):
            total += levels[i]
    else:
        for pixel in range(levels.shape[0] // 3):
            total += grey_level(levels[3 * pixel], levels[3 * pixel + 1], levels[3 * pixel + 2])
    return int(total / (image.shape[0] * image.shape[1]) + 0.5)


@compiled
def change_saturation(image, factor):
    """Color: blends each pixel with its grey, in place. A grey image stays.

    Args:
        image: uint8 (H, W, C).
        factor: 0 gives a grey image, 2 more colourful ones.
    """
    if image.shape[2] == 1:
        return
    levels = image.reshape(image.size)
    for pixel in range(levels.shape[0] // 3):
        red, green, blue = levels[3 * pixel], levels[3 * pixel + 1], levels[3 * pixel + 2]
        grey = grey_level(red, green, blue)
        levels[3 * pixel] = blend(grey, red, factor)
        levels[3 * pixel + 1] = blend(grey, green, factor)
        levels[3 * pixel + 2] = blend(grey, blue, factor)


@compiled
def change_sharpness(image, factor, workspace):
    """Sharpness: blends the image with what a filter of 3x3 pixels makes of it, in place. The border stays.

    Args:
        image: uint8 (H, W, C).
        factor: 0 smooths, 2 sharpens.
        workspace: uint8, as many levels as the image or more.
    """
    height, width, channels = image.shape
    if height < 3 or width < 3:
        return
    before, after = workspace[: image.size], image.reshape(height, width * channels)
    _copy(image.reshape(image.size), before)
    before = before.reshape(height, width * channels)
    for y in range(1, height - 1):
        above, row = _neighbours(before[y - 1], channels), _neighbours(before[y], channels)
        below, target = _neighbours(before[y + 1], channels), _neighbours(after[y], channels)[1]
        _sharpen_row(above, row, below, factor, target)


@compiled
def _copy(levels, target):
    for i in range(levels.shape[0]):
        target[i] = levels[i]


@compiled
def _sharpen_row(above, row, below, factor, out):
    for i in range(out.shape[0]):
        smooth = _HALF + _weighted(below, i, _SIDE)
        smooth += _weighted(row, i, _CENTRE)
        smooth += _weighted(above, i, _SIDE)
        out[i] = blend(np.int32(smooth), row[1][i], factor)


@compiled
def _neighbours(row, channels):
    # The pixels to the left of the inner ones, the inner ones, and those to the right
    inner = row.shape[0] - 2 * channels
    return row[:inner], row[channels : channels + inner], row[2 * channels :]


@compiled
def _weighted(row, i, weight):
    left, middle, right = row
    return np.float32(left[i]) * _SIDE + np.float32(middle[i]) * weight + np.float32(right[i]) * _SIDE
