"""The kinds of masks that a run can choose from (Table 1f), by name."""

import math

from keras_mae.layers.block_masking import BlockMasking
from keras_mae.layers.grid_masking import GridMasking
from keras_mae.layers.masking import RandomMasking, num_visible

MASKINGS = ("random", "block", "grid")


def make_masking(kind, mask_ratio, grid_size, seed=None, **layer):
    """The masking layer of a kind.

    Args:
        kind: one of `MASKINGS`.
        mask_ratio: share of the patches removed; grid masks know .75 only.
        grid_size: (rows, columns) of the patch grid.
        seed: seed of the layer's own draws, used where no noise is given.
        **layer: of every Keras layer, such as `name` and `dtype`.

    Raises:
        ValueError: there is no such kind, or it cannot remove this share of this grid.
    """
    if kind == "random":
        num_visible(math.prod(grid_size), mask_ratio)
        return RandomMasking(mask_ratio, seed=seed, **layer)
    if kind == "block":
        return BlockMasking(mask_ratio, grid_size, seed=seed, **layer)
    if kind == "grid":
        return GridMasking(mask_ratio, grid_size, seed=seed, **layer)
    raise ValueError(f"The kind of masks must be one of {', '.join(MASKINGS)}. Received: {kind!r}")
