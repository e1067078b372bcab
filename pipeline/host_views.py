"""What a method sees of an image, computed on the host without TensorFlow: one encoded image in, pixels out.

The same views, with the same random choices, as the graph's in `views.py`, which says where they come from. Sizes are
(height, width) in pixels. This module imports no TensorFlow.
"""

from collections.abc import Callable

import numpy as np

from pipeline.array_files import is_wide
from pipeline.compiled import compiled
from pipeline.crop_resize import (
    CROP_TRIES,
    FixedCrop,
    choose_clamped_crop,
    choose_crop,
    choose_fixed_crop,
    crop_resize,
    resize,
    workspace_bytes,
)
from pipeline.crop_resize_wide import crop_resize_wide, resize_wide, wide_workspace_bytes
from pipeline.host_decode import decode_image
from pipeline.host_draws import draw_float32, draw_float64
from pipeline.philox import purpose_tag
from pipeline.thread_buffer import ThreadBuffer

_CROP, _FLIP = purpose_tag("crop"), purpose_tag("flip")
_workspace = ThreadBuffer(first=1 << 21, largest=1 << 27)


def random_crop(
    size: tuple[int, int],
    *,
    channels: int,
    dtype: str = "uint8",
    min_area: float,
    flip: bool,
    clamped: bool = False,
    fixed: FixedCrop | None = None,
) -> Callable[[bytes, np.ndarray, np.ndarray], None]:
    """A random resized crop, flipped half of the times or never.

    Args:
        size: of the result.
        channels, dtype: as for `host_decode.decode_image`.
        min_area: lower bound of the crop's share of the image's area.
        flip: whether to flip horizontally with probability .5.
        clamped: whether the box is `choose_clamped_crop`'s, as in the linear probe, instead of `choose_crop`'s.
        fixed: a crop of fixed size instead; None: a random resized crop.

    Returns:
        Function of an encoded image, the sample's seed, int64 (2,), and the result, (*size, channels) of `dtype`, to
        fill.
    """

    def view(encoded: bytes, seed: np.ndarray, out: np.ndarray) -> None:
        image = decode_image(encoded, channels, dtype)
        workspace = _workspace.of_size(workspace_bytes(*image.shape, *size))
        _random_crop(image, seed, min_area, flip, clamped, fixed, workspace, out)

    def wide_view(encoded: bytes, seed: np.ndarray, out: np.ndarray) -> None:
        image = decode_image(encoded, channels, dtype)
        workspace = _workspace.of_size(wide_workspace_bytes(*image.shape[1:], size[0]))
        _random_wide_crop(image, seed, min_area, flip, clamped, fixed, workspace, out)

    return wide_view if is_wide(channels, dtype) else view


@compiled
def _random_crop(image, seed, min_area, flip, clamped, fixed, workspace, out):
    box = np.empty(4, np.int64)
    flipped = _choose(image.shape[0], image.shape[1], seed, min_area, flip, clamped, fixed, box)
    crop_resize(image, box, flipped, workspace, out)


@compiled
def _random_wide_crop(image, seed, min_area, flip, clamped, fixed, workspace, out):
    box = np.empty(4, np.int64)
    flipped = _choose(image.shape[0], image.shape[1], seed, min_area, flip, clamped, fixed, box)
    crop_resize_wide(image, box, flipped, workspace, out)


@compiled
def _choose(height, width, seed, min_area, flip, clamped, fixed, box):
    # Fills in the box; whether left and right are exchanged.
    uniforms, coin = np.empty(4 * CROP_TRIES), np.empty(1, np.float32)
    draw_float64(seed[0], seed[1], _CROP, uniforms)
    if fixed is not None:
        choose_fixed_crop(height, width, uniforms, fixed, box)
    elif clamped:
        choose_clamped_crop(height, width, uniforms, min_area, box)
    else:
        choose_crop(height, width, uniforms, min_area, box)
    if flip:
        draw_float32(seed[0], seed[1], _FLIP, coin)
    return flip and coin[0] < 0.5


def central_crop(
    size: tuple[int, int], *, channels: int, dtype: str = "uint8", resize_size: int
) -> Callable[[bytes, np.ndarray, np.ndarray], None]:
    """The centre of the image, resized so that it covers the enlarged view (see `views.eval_view`).

    Args:
        size: of the result.
        channels, dtype: as for `host_decode.decode_image`.
        resize_size: of the view's short side before the centre is taken; at least that side.

    Returns:
        Function as `random_crop` returns it; the seed is not used.
    """

    resize_all = resize_wide if is_wide(channels, dtype) else resize

    def view(encoded: bytes, seed: np.ndarray, out: np.ndarray) -> None:
        image = decode_image(encoded, channels, dtype)
        height, width = covering_size(*image.shape[:2], size, resize_size)
        top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)  # half to even, as torchvision
        resized = image if image.shape[:2] == (height, width) else resize_all(image, (height, width))
        out[...] = resized[top : top + size[0], left : left + size[1]]

    return view


def covering_size(height: int, width: int, size: tuple[int, int], resize_size: int) -> tuple[int, int]:
    """The size to which `central_crop` resizes an image of (height, width).

    One side becomes the enlarged view's, exactly; the other keeps the aspect ratio, rounded down.
    """
    target_height, target_width = (-(-side * resize_size // min(size)) for side in size)
    if height * target_width <= width * target_height:
        return target_height, target_height * width // height
    return target_width * height // width, target_width
