"""AutoContrast and Equalize, compiled: each channel's levels change as its histogram says, to the levels of Pillow."""

import numpy as np

from pipeline.compiled import compiled

_LEVELS = 256


@compiled
def stretch_contrast(image):
    """AutoContrast: in each channel the darkest level becomes 0, the brightest 255. In place.

    Args:
        image: uint8 (H, W, C).
    """
    counts, table = _histograms(image), np.empty((image.shape[2], _LEVELS), np.uint8)
    for channel in range(image.shape[2]):
        low, high = _first(counts[channel]), _LEVELS - 1 - _first(counts[channel, ::-1])
        scale = 255.0 / (high - low) if low < high else 1.0
        offset = -low * scale if low < high else 0.0
        for level in range(_LEVELS):
            table[channel, level] = min(max(int(level * scale + offset), 0), 255)
    _look_up(image, table)


@compiled
def equalize(image):
    """Equalize: each level becomes the share of the channel's pixels that are darker. In place.

    Args:
        image: uint8 (H, W, C).
    """
    counts, table = _histograms(image), np.empty((image.shape[2], _LEVELS), np.uint8)
    for channel in range(image.shape[2]):
        brightest = _LEVELS - 1 - _first(counts[channel, ::-1])
        step = (image.shape[0] * image.shape[1] - counts[channel, brightest]) // 255
        darker = step // 2
        for level in range(_LEVELS):
            table[channel, level] = min(darker // step, 255) if step else level
            darker += counts[channel, level]
    _look_up(image, table)


@compiled
def _histograms(image):
    # int64 (C, _LEVELS)
    counts, levels = np.zeros((image.shape[2], _LEVELS), np.int64), image.reshape(image.size)
    if image.shape[2] == 3:
        for first in range(0, levels.shape[0], 3):
            counts[0, levels[first]] += 1
            counts[1, levels[first + 1]] += 1
            counts[2, levels[first + 2]] += 1
    else:
        for i in range(levels.shape[0]):
            counts[0, levels[i]] += 1
    return counts


@compiled
def _first(counts):
    # The place of the first count above 0; there is one.
    place = 0
    while counts[place] == 0:
        place += 1
    return place


@compiled
def _look_up(image, table):
    levels = image.reshape(image.size)
    if image.shape[2] == 3:
        for first in range(0, levels.shape[0], 3):
            levels[first] = table[0, levels[first]]
            levels[first + 1] = table[1, levels[first + 1]]
            levels[first + 2] = table[2, levels[first + 2]]
    else:
        for i in range(levels.shape[0]):
            levels[i] = table[0, levels[i]]
