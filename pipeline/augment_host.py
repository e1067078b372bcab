"""Carries out the choices of `augment.py` on one image: the same pixels as timm's ops, which call Pillow, to the bit.

All ops of an image run in compiled code, which does not hold Python's lock. Geometric ops are Pillow's bicubic
(a = -1, not antialiased, rounded down), outside the image lies `augment.FILL`.

timm's Posterize at level 10 keeps no bit, which Pillow refuses from 13.0 on: here it gives black, as it used to.
"""

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.augment import FILL, OP_NUMBERS, ColorJitter, RandAugment, choose_jitter, choose_leveled
from pipeline.compiled import compiled
from pipeline.compiled_bicubic import transform
from pipeline.compiled_enhancement import change_saturation, change_sharpness
from pipeline.compiled_geometry import op_matrix
from pipeline.compiled_histograms import equalize, stretch_contrast
from pipeline.compiled_hue import turn_hue
from pipeline.compiled_levels import change_levels
from pipeline.host_draws import draw_float64
from pipeline.philox import purpose_tag
from pipeline.thread_buffer import ThreadBuffer

_COLOR, _SHARPNESS, _HUE = OP_NUMBERS["Color"], OP_NUMBERS["Sharpness"], OP_NUMBERS["Hue"]
_AUTO_CONTRAST, _EQUALIZE = OP_NUMBERS["AutoContrast"], OP_NUMBERS["Equalize"]
_GEOMETRIC = tuple(OP_NUMBERS[name] for name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"))
_PIXEL_BYTES = 4  # of the workspace
_workspace = ThreadBuffer(first=1 << 18, largest=1 << 27)


def apply(image: np.ndarray, ops: Sequence[tuple[str, float | None]]) -> np.ndarray:
    """Applies ops one after the other.

    Args:
        image: uint8 (H, W, C), C is 1 or 3.
        ops: (name, argument), as `RandAugment.choose` or `ColorJitter.choose` gives them.

    Returns:
        uint8 (H, W, C): `image` itself if there is nothing to do.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in FILL:
        raise ValueError(
            f"Augmentation takes uint8 (height, width, 1 or 3). Received: {image.dtype} of shape {image.shape}"
        )
    if not ops:
        return image
    out = np.array(image, order="C")
    numbers = np.array([OP_NUMBERS[name] for name, _ in ops])
    arguments = np.array([0.0 if argument is None else argument for _, argument in ops], np.float64)
    _apply(numbers, arguments, len(ops), out)
    return out


def augmentation(policy: RandAugment | ColorJitter, purpose: str) -> Callable[[np.ndarray, np.ndarray], None]:
    """What a policy does to a sample, from its seed on, without Python's lock.

    Args:
        policy: what to choose from.
        purpose: of the draws, see `philox.draw_uniform`.

    Returns:
        Function of the sample's seed, int64 (2,), and its image, uint8 (H, W, 1 or 3) in C order, changed in place.
    """
    tag, num_draws = purpose_tag(purpose), policy.num_draws
    if isinstance(policy, ColorJitter):
        choose, settings = _choose_jitter, (policy.range_table(),)
    else:
        choose, settings = _choose_leveled, (float(policy.magnitude), float(policy.magnitude_std))

    def augment(seed: np.ndarray, image: np.ndarray) -> None:
        numbers, arguments = np.empty(num_draws, np.int64), np.empty(num_draws)  # a choice for each draw at most
        count = choose(seed, tag, *settings, numbers, arguments)
        _apply(numbers, arguments, count, image)

    return augment


@compiled
def _choose_leveled(seed, tag, magnitude, magnitude_std, numbers, arguments):
    draws = np.empty(arguments.shape[0])
    draw_float64(seed[0], seed[1], tag, draws)
    return choose_leveled(draws, magnitude, magnitude_std, numbers, arguments)


@compiled
def _choose_jitter(seed, tag, ranges, numbers, arguments):
    draws = np.empty(arguments.shape[0])
    draw_float64(seed[0], seed[1], tag, draws)
    return choose_jitter(draws, ranges, numbers, arguments)


def _apply(numbers, arguments, count, image):
    # In place
    if count and image.size:
        workspace = _workspace.of_size(_PIXEL_BYTES * image.shape[0] * image.shape[1])
        if image.shape[2] == 3:
            workspace = workspace.view(np.uint32)
        _apply_ops(numbers, arguments, count, image, FILL[image.shape[2]], workspace)


@compiled
def _apply_ops(numbers, arguments, count, image, fill, workspace):
    for place in range(count):
        op, argument = numbers[place], arguments[place]
        if op in _GEOMETRIC:
            transform(image, op_matrix(op, argument, image.shape[0], image.shape[1]), fill, workspace)
        elif op == _SHARPNESS:
            change_sharpness(image, argument, workspace.view(np.uint8))
        elif op == _COLOR:
            change_saturation(image, argument)
        elif op == _HUE:
            turn_hue(image, argument)
        elif op == _AUTO_CONTRAST:
            stretch_contrast(image)
        elif op == _EQUALIZE:
            equalize(image)
        else:
            change_levels(image, op, argument)
