"""The matrices of the geometric ops, compiled: as timm and Pillow compute them, to the bit.

(Pillow turns by multiples of 90 degrees in another way, but with the same result: all places are centres of pixels.)
"""

import math

from pipeline.augment import OP_NUMBERS
from pipeline.compiled import compiled

_ROTATE, _TRANSLATE_X = OP_NUMBERS["Rotate"], OP_NUMBERS["TranslateX"]
_SHEAR_X, _SHEAR_Y = OP_NUMBERS["ShearX"], OP_NUMBERS["ShearY"]
_SPLITTER = 2.0**27 + 1


@compiled
def op_matrix(op, argument, height, width):
    """The matrix of Rotate, ShearX, ShearY, TranslateX or TranslateY, for `compiled_bicubic.transform`.

    Args:
        op: its number.
        argument: as `augment` describes it, float64.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        Six float64.
    """
    if op == _ROTATE:
        return _rotation(argument, height, width)
    if op == _SHEAR_X:
        return 1.0, argument, 0.0, 0.0, 1.0, 0.0
    if op == _SHEAR_Y:
        return 1.0, 0.0, 0.0, argument, 1.0, 0.0
    if op == _TRANSLATE_X:
        return 1.0, 0.0, argument * width, 0.0, 1.0, 0.0
    return 1.0, 0.0, 0.0, 0.0, 1.0, argument * height


@compiled
def _rotation(degrees, height, width):
    angle = -((degrees % 360.0) * (math.pi / 180))
    cosine, sine = round_to_15_digits(math.cos(angle)), round_to_15_digits(math.sin(angle))
    x, y = width / 2, height / 2  # the centre stays
    c = cosine * -x + sine * -y + x
    f = -sine * -x + cosine * -y + y
    return cosine, sine, c, -sine, cosine, f


@compiled
def round_to_15_digits(value):
    """Python's `round(value, 15)` for -1 .. 1: the float64 nearest to the nearest decimal fraction.

    The product with 10**15 is computed without error, as a sum of two numbers (Dekker, 1971).
    """
    scale = 1e15
    value_high, scale_high = value * _SPLITTER, scale * _SPLITTER
    value_high, scale_high = value_high - (value_high - value), scale_high - (scale_high - scale)
    value_low, scale_low = value - value_high, scale - scale_high
    product = value * scale
    rest = value_high * scale_high - product + value_high * scale_low + value_low * scale_high + value_low * scale_low
    whole = math.floor(product)
    above_half = (product - whole - 0.5) + rest
    if above_half > 0 or (above_half == 0 and whole % 2 == 1):
        whole += 1
    return whole / scale
