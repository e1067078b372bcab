"""Block-wise masking (Table 1f, Figure 6, middle): rectangles are removed until the number of patches is reached.

The rectangles are BEiT's (arXiv 2106.08254, Algorithm 1 and its code): area uniform between 16 patches and what is
still to be removed, log-uniform aspect ratio, sides shorter than the grid's, refused where it would remove too much.
On purpose otherwise: the number of tries is fixed, so that every shape is static and the loop ends; what is missing
after the last try is filled, so that all samples keep equally many patches; on small grids the 16 patches of BEiT's
14x14 grid become the same share of the grid.
"""

import math

import keras
from keras import ops

from keras_mae.layers.masking import check_grid, num_visible, own_or_given_noise, random_masking

# Of a 14x14 grid at 75%, .3 of the 147 patches to remove are still missing after so many, on average.
NUM_TRIES = 32
DRAWS_PER_TRY = 4  # area, aspect ratio, row, column
MIN_ASPECT = 0.3
MIN_PATCHES, BEIT_GRID_PATCHES = 16, 14 * 14
LAST = 9.0  # above every number of neighbours plus noise


def smallest_area(num_patches):
    """Patches of the smallest rectangle aimed at: 16, on grids smaller than BEiT's the same share of the grid."""
    return min(MIN_PATCHES, max(1, round(MIN_PATCHES * num_patches / BEIT_GRID_PATCHES)))


def draw_rectangles(draws, missing, grid_size):
    """One try of each sample.

    Args:
        draws: (batch, 4) uniform numbers: area, aspect ratio, row, column.
        missing: (batch,) patches that are still to be removed.
        grid_size: (rows, columns) of the patch grid.

    Returns:
        (batch, rows, columns) float32, 1 inside the rectangle. All 0 where it has the length of a side of the grid.
    """
    area, aspect, top, left = ops.unstack(draws, DRAWS_PER_TRY, axis=1)  # (B,)
    smallest = smallest_area(math.prod(grid_size))
    area = smallest + (missing - smallest) * area
    aspect = ops.exp((1 - 2 * aspect) * math.log(MIN_ASPECT))  # log-uniform in [.3, 1/.3]
    rectangle = 1.0
    sides = (ops.sqrt(area * aspect), ops.sqrt(area / aspect))
    for axis, (side, start, length) in enumerate(zip(sides, (top, left), grid_size, strict=True)):
        side = ops.round(side)
        fits = side <= max(length - 1, 1)
        start = ops.minimum(ops.floor(start * (length - side + 1)), length - side)
        place = ops.arange(length, dtype="float32")
        inside = (place >= start[:, None]) & (place < (start + side)[:, None]) & fits[:, None]  # (B, length)
        rectangle = rectangle * ops.expand_dims(ops.cast(inside, "float32"), 2 - axis)
    return rectangle


def remove_rectangles(draws, num_removed, grid_size):
    """Removes one rectangle after the other, never more patches than asked for.

    Args:
        draws: (tries, batch, 4) uniform numbers.
        num_removed: patches to remove from each sample; the last of them may be missing afterwards.
        grid_size: (rows, columns) of the patch grid.

    Returns:
        (batch, rows, columns) float32, 1 = removed.
    """

    def one_try(number, removed):
        missing = num_removed - ops.sum(removed, axis=(1, 2))  # (B,)
        rectangle = draw_rectangles(ops.take(draws, number, axis=0), missing, grid_size)
        added = rectangle * (1 - removed)
        accepted = ops.sum(added, axis=(1, 2)) <= missing
        return removed + added * ops.cast(accepted, "float32")[:, None, None]

    removed = ops.zeros((ops.shape(draws)[1], *grid_size), dtype="float32")
    return ops.fori_loop(0, draws.shape[0], one_try, removed)


def removed_neighbours(removed):
    """Of every patch, how many of the four beside it are removed: (batch, rows, columns)."""
    padded = ops.pad(removed, ((0, 0), (1, 1), (1, 1)))
    return padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]


def block_masking(noise, keep, grid_size):
    """Removes rectangles of patches, then single patches beside them until `keep` are left.

    Args:
        noise: (batch, num_patches + 128) uniform numbers in [0, 1): one a patch, which decides between patches that
            have equally many removed neighbours; then four a try (area, aspect ratio, row, column).
        keep: number of patches that stay visible.
        grid_size: (rows, columns) of the patch grid.

    Returns:
        ids_keep, ids_restore and mask, as of `random_masking`; here the visible patches stand by ascending number of
        removed neighbours, equals by ascending noise.
    """
    num_patches = math.prod(grid_size)
    draws = ops.reshape(noise[:, num_patches:], (-1, NUM_TRIES, DRAWS_PER_TRY))
    removed = remove_rectangles(ops.transpose(draws, (1, 0, 2)), num_patches - keep, grid_size)  # (B, rows, columns)
    removed, neighbours = (ops.reshape(x, (-1, num_patches)) for x in (removed, removed_neighbours(removed)))  # (B, N)
    return random_masking(ops.where(removed > 0, LAST, neighbours + noise[:, :num_patches]), keep)


@keras.saving.register_keras_serializable(package="keras_mae")
class BlockMasking(keras.layers.Layer):
    """Removes large rectangles from every sample, new ones each time.

    The task is harder than with random masks: what is removed cannot be continued from the patches around it.
    `noise` means what it means to `RandomMasking`.

    Args:
        mask_ratio: share of the patches removed.
        grid_size: (rows, columns) of the patch grid.
        seed: seed of the layer's own draws, used where no noise is given.

    Call arguments:
        patches: (batch, num_patches, values); only its shape is read.
        noise: (batch, num_draws) float32, optional.

    Output shape:
        ids_keep (batch, num_visible), ids_restore (batch, num_patches), mask (batch, num_patches; 1 = removed).
    """

    def __init__(self, mask_ratio, grid_size, seed=None, **kwargs):
        super().__init__(autocast=False, **kwargs)  # the noise keeps its float32 digits
        self.mask_ratio = mask_ratio
        self.grid_size = tuple(grid_size)
        self.seed = seed
        self.keep = num_visible(math.prod(self.grid_size), mask_ratio)
        self.seed_generator = keras.random.SeedGenerator(seed)

    def num_draws(self, num_patches):
        """Noise values that each sample needs: one a patch, four a try."""
        check_grid(num_patches, self.grid_size)
        return num_patches + NUM_TRIES * DRAWS_PER_TRY

    def call(self, patches, noise=None):
        num_draws = self.num_draws(patches.shape[1])
        noise = own_or_given_noise(noise, patches, num_draws, self.seed_generator)  # (B, draws)
        return block_masking(noise, self.keep, self.grid_size)

    def get_config(self):
        return {
            **super().get_config(),
            "mask_ratio": self.mask_ratio,
            "grid_size": self.grid_size,
            "seed": self.seed,
        }
