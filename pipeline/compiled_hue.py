"""A turn of the hue, compiled: through Pillow's HSV of 8 bits a channel and back, the same pixels to the bit.

Pillow mixes single and double precision; where it keeps a value in single precision, so does this module.
"""

import math

import numpy as np

from pipeline.compiled import compiled


@compiled
def turn_hue(image, turn):
    """Turns the hue of an image in place. A grey image stays.

    Args:
        image: uint8 (H, W, C).
        turn: share of a full turn, rounded to 255ths towards zero.
    """
    if image.shape[2] == 1:
        return
    steps, levels = int(turn * 255) % 256, image.reshape(image.size)
    for first in range(0, levels.shape[0], 3):
        hue, saturation, value = _to_hsv(levels[first], levels[first + 1], levels[first + 2])
        red, green, blue = _to_rgb((hue + steps) % 256, saturation, value)
        levels[first], levels[first + 1], levels[first + 2] = red, green, blue


@compiled
def _to_hsv(red, green, blue):
    # Three integers 0 .. 255
    high, low = max(red, green, blue), min(red, green, blue)
    if high == low:
        return 0, 0, int(high)
    spread = np.float32(high - low)
    from_red, from_green, from_blue = (
        np.float32(high - red) / spread,
        np.float32(high - green) / spread,
        np.float32(high - blue) / spread,
    )
    if red == high:
        sixths = from_blue - from_green
    elif green == high:
        sixths = np.float32(2.0 + np.float64(from_red) - np.float64(from_blue))
    else:
        sixths = np.float32(4.0 + np.float64(from_green) - np.float64(from_red))
    hue = np.float64(sixths) / 6.0 + 1.0
    hue = np.float64(np.float32(hue - math.floor(hue)))
    saturation = np.float64(spread / np.float32(high))
    return int(hue * 255.0), int(saturation * 255.0), int(high)


@compiled
def _to_rgb(hue, saturation, value):
    if saturation == 0:
        return value, value, value
    place = hue * 6.0 / 255.0
    sector = math.floor(place)
    along, chroma = np.float32(place - sector), np.float32(saturation / 255.0)
    low = _rounded(value * (1.0 - np.float64(chroma)))
    falling = _rounded(value * (1.0 - np.float64(chroma * along)))
    rising = _rounded(value * (1.0 - np.float64(chroma) * (1.0 - np.float64(along))))
    if sector == 1:
        return falling, value, low
    if sector == 2:
        return low, value, rising
    if sector == 3:
        return low, falling, value
    if sector == 4:
        return rising, low, value
    if sector == 5:
        return value, low, falling
    return value, rising, low


@compiled
def _rounded(value):
    # To the nearest; halves up, since nothing is negative
    whole = math.floor(value)
    return int(whole + 1 if value - whole >= 0.5 else whole)
