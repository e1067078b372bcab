"""Pillow's antialiased bicubic filter (a = -.5): which pixels of a row make a pixel of its resized copy. No TensorFlow.

Compiled by Numba on first use.
"""

import math

import numpy as np

from pipeline.compiled import compiled

_SUPPORT = 2.0  # of the filter, in pixels of the smaller image


@compiled
def _bicubic(x):
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return 0.0


@compiled
def bicubic_taps(in_size, out_size):
    """Input pixels and their weights for each output pixel.

    Args:
        in_size, out_size: pixels.

    Returns:
        first: int64 (out_size,), the first input pixel.
        count: int64 (out_size,), how many follow, itself included.
        weights: float64 (out_size, taps at most), of sum 1; 0 from `count` on.
    """
    scale = in_size / out_size
    filter_scale = max(scale, 1.0)
    support = _SUPPORT * filter_scale
    first, count = np.empty(out_size, np.int64), np.empty(out_size, np.int64)
    weights = np.zeros((out_size, int(math.ceil(support)) * 2 + 1))
    for pixel in range(out_size):
        center = (pixel + 0.5) * scale
        begin = max(int(center - support + 0.5), 0)
        taps = min(int(center + support + 0.5), in_size) - begin
        total = 0.0
        for tap in range(taps):
            weights[pixel, tap] = _bicubic((tap + begin - center + 0.5) / filter_scale)
            total += weights[pixel, tap]
        for tap in range(taps):
            weights[pixel, tap] /= total
        first[pixel], count[pixel] = begin, taps
    return first, count, weights
