"""Ops that make of each level another, whatever lies around the pixel and elsewhere in the image, compiled.

Contrast is one of them, once the mean of the grey image is known. The levels are Pillow's, to the bit.
"""

import numpy as np

from pipeline.augment import OP_NUMBERS
from pipeline.compiled import compiled
from pipeline.compiled_enhancement import blend, mean_grey

_INVERT, _POSTERIZE, _SOLARIZE = OP_NUMBERS["Invert"], OP_NUMBERS["Posterize"], OP_NUMBERS["Solarize"]
_SOLARIZE_ADD, _CONTRAST = OP_NUMBERS["SolarizeAdd"], OP_NUMBERS["Contrast"]


@compiled
def change_levels(image, op, argument):
    """Applies Invert, Posterize, Solarize, SolarizeAdd, Brightness or Contrast in place.

    Args:
        image: uint8 (H, W, C).
        op: its number.
        argument: as `augment` describes it, float64.
    """
    levels, addition = image.reshape(image.size), np.int32(argument)
    kept_bits = np.int32(256 - (1 << (8 - int(argument))) if op == _POSTERIZE else 0)
    plain = np.int32(mean_grey(image) if op == _CONTRAST else 0)
    for i in range(levels.shape[0]):
        levels[i] = _new_level(np.int32(levels[i]), op, argument, kept_bits, addition, plain)


@compiled
def _new_level(level, op, argument, kept_bits, addition, plain):
    # Compilers make a loop for each op of it.
    if op == _INVERT:
        return np.uint8(255 - level)
    if op == _POSTERIZE:
        return np.uint8(level & kept_bits)
    if op == _SOLARIZE:
        return np.uint8(level if np.float32(level) < np.float32(argument) else 255 - level)
    if op == _SOLARIZE_ADD:
        return np.uint8(min(level + addition, 255) if level < 128 else level)
    return blend(plain, level, argument)
