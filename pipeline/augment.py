"""What augmentation does to an image, chosen from uniform draws: RandAugment and colour jitter.

RandAugment (Cubuk et al., 2020) is the variant that fine-tuning uses (arXiv 2111.06377, table 9), in timm's
notation `rand-m9-mstd0.5-inc1`: so many ops, drawn with replacement from 15 whose strength grows with the level;
each is then left out with probability 1/2, and its level is normal around the magnitude, clipped to 0 .. 10.
Colour jitter is torchvision's.

This module chooses only, in code compiled by Numba, which holds Python's lock for a few microseconds at most. A choice
is (name of an op, argument), and two modules carry it out: `augment_host` compiled, too, `augment_graph` with
TensorFlow ops. Arguments, by op:

    AutoContrast, Equalize, Invert          none
    Rotate                                  degrees, counterclockwise
    Posterize                               bits that are kept; 0 gives black
    Solarize                                the level from which on pixels are inverted, 0 .. 256
    SolarizeAdd                             added to the pixels below 128
    Brightness, Contrast, Color, Sharpness  factor, 1 changes nothing
    ShearX, ShearY                          pixels to the side per pixel
    TranslateX, TranslateY                  share of the width, of the height
    Hue                                     share of a full turn
"""

import re
from dataclasses import dataclass

import numpy as np

from pipeline.compiled import compiled
from pipeline.compiled_normal import normal_quantile

# Colours of pixels that come from outside the image, by number of channels: ImageNet's mean, and the grey of it
FILL = {1: (117,), 3: (124, 116, 104)}

TOP_LEVEL = 10.0
APPLY_PROBABILITY = 0.5
DRAWS_PER_OP = 4  # which op, whether it is applied, its level, its direction
SMALLEST_DRAW = 2.0**-54  # stands for a draw of 0, which is no quantile of a normal distribution

# Draws for one image's jitter: a factor and a place in the order for each of these ops
JITTER_OPS = ("Brightness", "Contrast", "Color", "Hue")

_SECTION = re.compile(r"(mstd|inc|m|n)(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class LeveledOp:
    """An op of RandAugment and how its argument follows from a level.

    Args:
        name: of the op.
        base: the argument at level 0.
        span: what level 10 adds to it; 0 for ops without an argument.
        signed: whether it is added or subtracted, each half of the times.
        whole: whether what is added is rounded towards zero.
    """

    name: str
    base: float = 0.0
    span: float = 0.0
    signed: bool = False
    whole: bool = False

    def argument(self, level: float, negative: bool) -> float | None:
        """The argument at a level 0 .. 10; None for an op that takes none."""
        return self._as_given(_leveled_argument(self.base, self.span, self.signed, self.whole, level, negative))

    def _as_given(self, argument: float) -> float | None:
        if not self.span:
            return None
        return int(argument) if self.whole else argument


RAND_AUGMENT_OPS = (
    LeveledOp("AutoContrast"),
    LeveledOp("Equalize"),
    LeveledOp("Invert"),
    LeveledOp("Rotate", span=30.0, signed=True),
    LeveledOp("Posterize", base=4.0, span=-4.0, whole=True),
    LeveledOp("Solarize", base=256.0, span=-256.0, whole=True),
    LeveledOp("SolarizeAdd", span=110.0, whole=True),
    LeveledOp("Color", base=1.0, span=0.9, signed=True),
    LeveledOp("Contrast", base=1.0, span=0.9, signed=True),
    LeveledOp("Brightness", base=1.0, span=0.9, signed=True),
    LeveledOp("Sharpness", base=1.0, span=0.9, signed=True),
    LeveledOp("ShearX", span=0.3, signed=True),
    LeveledOp("ShearY", span=0.3, signed=True),
    LeveledOp("TranslateX", span=0.45, signed=True),
    LeveledOp("TranslateY", span=0.45, signed=True),
)
# Compiled code knows ops by number: RandAugment's in the order above, then what jitter has beside them.
OP_NUMBERS = {name: number for number, name in enumerate([*(op.name for op in RAND_AUGMENT_OPS), "Hue"])}
_BASES, _SPANS = np.array([op.base for op in RAND_AUGMENT_OPS]), np.array([op.span for op in RAND_AUGMENT_OPS])
_SIGNED, _WHOLE = np.array([op.signed for op in RAND_AUGMENT_OPS]), np.array([op.whole for op in RAND_AUGMENT_OPS])
_JITTER_NUMBERS = tuple(OP_NUMBERS[name] for name in JITTER_OPS)


@dataclass(frozen=True)
class RandAugment:
    """RandAugment with ops whose strength grows with the level.

    Args:
        magnitude: the mean level, 0 .. 10.
        magnitude_std: standard deviation of the level.
        num_ops: how many ops are drawn for an image; half of them are applied.
    """

    magnitude: float = 9.0
    magnitude_std: float = 0.5
    num_ops: int = 2

    def __post_init__(self):
        if not 0 <= self.magnitude <= TOP_LEVEL:
            raise ValueError(f"RandAugment's magnitude must be from 0 to 10. Received: {self.magnitude}")
        if not 0 <= self.magnitude_std <= 100:
            raise ValueError(f"RandAugment's magnitude_std must be from 0 to 100. Received: {self.magnitude_std}")
        if self.num_ops < 1:
            raise ValueError(f"RandAugment's num_ops must be at least 1. Received: {self.num_ops}")

    @property
    def num_draws(self) -> int:
        """How many uniform draws one image needs."""
        return self.num_ops * DRAWS_PER_OP

    def choose(self, uniforms: np.ndarray) -> list[tuple[str, float | None]]:
        """The ops to be applied to one image, in order: 0 to `num_ops` of them.

        Args:
            uniforms: float64 (num_draws,), from [0, 1).

        Returns:
            A list of (name, argument).
        """
        uniforms = _checked(self, uniforms)
        numbers, arguments = np.empty(self.num_ops, np.int64), np.empty(self.num_ops)
        count = choose_leveled(uniforms, float(self.magnitude), float(self.magnitude_std), numbers, arguments)
        ops = [RAND_AUGMENT_OPS[number] for number in numbers[:count]]
        return [(op.name, op._as_given(argument)) for op, argument in zip(ops, arguments.tolist(), strict=False)]


@compiled
def choose_leveled(uniforms, magnitude, magnitude_std, numbers, arguments):
    """`RandAugment.choose`, compiled.

    Args:
        uniforms: float64 (DRAWS_PER_OP * num_ops,), draws from [0, 1).
        magnitude: float64.
        magnitude_std: float64.
        numbers: int64 (num_ops,), receives the numbers of the ops that are applied.
        arguments: float64 (num_ops,), receives their arguments.

    Returns:
        How many ops are applied.
    """
    count = 0
    for first in range(0, uniforms.shape[0], DRAWS_PER_OP):
        if uniforms[first + 1] < APPLY_PROBABILITY:
            op = int(uniforms[first] * len(_BASES))
            level = magnitude + magnitude_std * normal_quantile(max(uniforms[first + 2], SMALLEST_DRAW))
            level = max(0.0, min(level, TOP_LEVEL))
            negative = uniforms[first + 3] < 0.5
            numbers[count] = op
            arguments[count] = _leveled_argument(_BASES[op], _SPANS[op], _SIGNED[op], _WHOLE[op], level, negative)
            count += 1
    return count


@compiled
def _leveled_argument(base, span, signed, whole, level, negative):
    change = level / TOP_LEVEL * span
    if whole:
        change = np.trunc(change)
    return base - change if signed and negative else base + change


def parse_rand_augment(policy: str) -> RandAugment:
    """RandAugment from timm's notation, such as "rand-m9-mstd0.5-inc1".

    Args:
        policy: `rand`, then in any order `m` (magnitude, default 10), `mstd` (its standard deviation, default 0),
            `n` (ops for an image, default 2) and `inc1`, which must be there: the ops that do not all grow
            stronger with the level, timm's default, are not implemented.

    Raises:
        ValueError: for anything else.
    """
    expected = "expected 'rand' and sections m, mstd, n and inc1, such as 'rand-m9-mstd0.5-inc1'"
    head, *sections = policy.split("-")
    if head != "rand":
        raise ValueError(f"Not a RandAugment policy: {expected}. Received: {policy!r}")
    values = {}
    for section in sections:
        match = _SECTION.fullmatch(section)
        if not match:
            raise ValueError(f"Unknown section {section!r} in a RandAugment policy: {expected}. Received: {policy!r}")
        key, value = match.groups()
        if key in values:
            raise ValueError(f"Section {key!r} is twice in a RandAugment policy: {expected}. Received: {policy!r}")
        if key != "mstd" and "." in value:
            raise ValueError(f"Section {key!r} of a RandAugment policy takes a whole number. Received: {policy!r}")
        values[key] = value
    if values.get("inc") != "1":
        raise ValueError(
            f"Only ops that grow stronger with the level are implemented: {expected}. Received: {policy!r}"
        )
    return RandAugment(float(values.get("m", TOP_LEVEL)), float(values.get("mstd", 0)), int(values.get("n", 2)))


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue, each changed by a random amount, in random order.

    A strength of 0 leaves its op out.

    Args:
        brightness: factors are from U(max(0, 1 - brightness), 1 + brightness).
        contrast: likewise.
        saturation: likewise.
        hue: the hue is turned by U(-hue, hue) of a full turn; at most .5.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    num_draws = 2 * len(JITTER_OPS)

    def __post_init__(self):
        for name in ("brightness", "contrast", "saturation"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"ColorJitter's {name} must be at least 0. Received: {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"ColorJitter's hue must be from 0 to .5. Received: {self.hue}")

    @property
    def ranges(self) -> tuple[tuple[float, float] | None, ...]:
        """(low, high) of the arguments of JITTER_OPS; None for an op that is left out."""
        factors = [(max(0.0, 1 - s), 1 + s) if s else None for s in (self.brightness, self.contrast, self.saturation)]
        return (*factors, (-self.hue, self.hue) if self.hue else None)

    def choose(self, uniforms: np.ndarray) -> list[tuple[str, float]]:
        """The ops to be applied to one image, in order; arguments and result as for `RandAugment.choose`."""
        numbers, arguments = np.empty(len(JITTER_OPS), np.int64), np.empty(len(JITTER_OPS))
        count = choose_jitter(_checked(self, uniforms), self.range_table(), numbers, arguments)
        names = [JITTER_OPS[_JITTER_NUMBERS.index(number)] for number in numbers[:count]]
        return list(zip(names, arguments.tolist(), strict=False))

    def range_table(self) -> np.ndarray:
        """`ranges` for `choose_jitter`: float64 (4, 2), NaN for an op that is left out."""
        return np.array([limits or (np.nan, np.nan) for limits in self.ranges])


@compiled
def choose_jitter(uniforms, ranges, numbers, arguments):
    """`ColorJitter.choose`, compiled.

    Args:
        uniforms: float64 (8,), draws from [0, 1).
        ranges: as `ColorJitter.range_table` gives them.
        numbers: int64 (4,), receives the numbers of the ops that are applied, in order.
        arguments: float64 (4,), receives their arguments.

    Returns:
        How many ops are applied.
    """
    places, count = uniforms[len(ranges) :], 0
    for place in range(len(ranges)):
        op = 0
        while _rank(places, op) != place:
            op += 1
        low, high = ranges[op]
        if not np.isnan(low):
            numbers[count], arguments[count] = _JITTER_NUMBERS[op], low + (high - low) * uniforms[op]
            count += 1
    return count


@compiled
def _rank(values, number):
    # Of a value among all of them, 0 for the least; of equal ones the first comes first.
    rank = 0
    for other in range(len(values)):
        if values[other] < values[number] or (values[other] == values[number] and other < number):
            rank += 1
    return rank


def _checked(policy: RandAugment | ColorJitter, uniforms: np.ndarray) -> np.ndarray:
    uniforms = np.array(uniforms, np.float64)
    if uniforms.shape != (policy.num_draws,):
        name = type(policy).__name__
        raise ValueError(f"{name} takes ({policy.num_draws},) draws an image. Received: shape {uniforms.shape}")
    return uniforms
