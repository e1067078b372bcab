"""Grid-wise masking (Table 1f, Figure 6, right): one of every four patches stays, in a regular pattern.

The grid is cut into cells of 2x2 patches from its top left corner. Each sample draws one of the four positions, and
every cell keeps the patch there. So the mask ratio is 75%, and there are four patterns.

The paper does not say what becomes of an odd side, where the last row or column has no whole cell. Here
int(N / 4) patches stay as with every other mask: one of each whole cell, and as many as are missing from the last row
and column, first those that continue the pattern, of equals those of the smallest noise.
"""

import math

import keras
import numpy as np
from keras import ops

from keras_mae.layers.masking import check_grid, num_visible, own_or_given_noise, random_masking

MASK_RATIO = 0.75
NUM_POSITIONS = 4  # in a cell: top left, top right, bottom left, bottom right


def cells(grid_size):
    """Where each patch of a grid lies.

    Args:
        grid_size: (rows, columns) of the patch grid.

    Returns:
        position: (num_patches,) of the patch in its cell, 0 to 3.
        outside: (num_patches,) 1 where the patch belongs to no whole cell, else 0.
    """
    rows, columns = np.indices(grid_size).reshape(2, -1)
    outside = (rows // 2 == grid_size[0] // 2) | (columns // 2 == grid_size[1] // 2)
    return (2 * (rows % 2) + columns % 2).astype("float32"), outside.astype("float32")


def grid_masking(noise, grid_size):
    """Keeps one of every four patches.

    Args:
        noise: (batch, num_patches + 1) uniform numbers in [0, 1): one a patch, for the order of equals; the last one
            is the position in the cell.
        grid_size: (rows, columns) of the patch grid.

    Returns:
        ids_keep, ids_restore and mask, as of `random_masking`; here the visible patches of whole cells come first,
        and equals stand by ascending noise.
    """
    num_patches = math.prod(grid_size)
    position, outside = cells(grid_size)
    drawn = ops.floor(NUM_POSITIONS * noise[:, num_patches:])  # (B, 1)
    rank = ops.where(ops.equal(drawn, position), outside, 3 - outside)  # (B, N), 0 to 3: which patches stay first
    return random_masking(rank + noise[:, :num_patches], num_visible(num_patches, MASK_RATIO))


@keras.saving.register_keras_serializable(package="keras_mae")
class GridMasking(keras.layers.Layer):
    """Keeps one of every four patches of each sample, regularly; which of the four changes every time.

    The task is easier than with random masks: inside the grid every removed patch has a visible one beside it or at a
    corner. `noise` means what it means to `RandomMasking`.

    Args:
        mask_ratio: share of the patches removed: .75 and no other.
        grid_size: (rows, columns) of the patch grid; odd sides may be, see the module.
        seed: seed of the layer's own draws, used where no noise is given.

    Call arguments:
        patches: (batch, num_patches, values); only its shape is read.
        noise: (batch, num_draws) float32, optional.

    Output shape:
        ids_keep (batch, num_visible), ids_restore (batch, num_patches), mask (batch, num_patches; 1 = removed).
    """

    def __init__(self, mask_ratio, grid_size, seed=None, **kwargs):
        super().__init__(autocast=False, **kwargs)  # the noise keeps its float32 digits
        if mask_ratio != MASK_RATIO:
            raise ValueError(
                f"mask_ratio must be {MASK_RATIO} for grid masking, which keeps one of every four patches. "
                f"Received: mask_ratio={mask_ratio}"
            )
        self.mask_ratio = mask_ratio
        self.grid_size = tuple(grid_size)
        self.seed = seed
        num_visible(math.prod(self.grid_size), mask_ratio)
        self.seed_generator = keras.random.SeedGenerator(seed)

    def num_draws(self, num_patches):
        """Noise values that each sample needs: one a patch, one for the pattern."""
        check_grid(num_patches, self.grid_size)
        return num_patches + 1

    def call(self, patches, noise=None):
        num_draws = self.num_draws(patches.shape[1])
        noise = own_or_given_noise(noise, patches, num_draws, self.seed_generator)  # (B, draws)
        return grid_masking(noise, self.grid_size)

    def get_config(self):
        return {
            **super().get_config(),
            "mask_ratio": self.mask_ratio,
            "grid_size": self.grid_size,
            "seed": self.seed,
        }
