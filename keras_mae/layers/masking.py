"""Random masking (Section 3, "Masking"): which patches the encoder sees."""

import keras
from keras import ops


def num_visible(num_patches, mask_ratio):
    """Number of patches that stay: int(N (1 - ratio)), at least 1.

    Raises:
        ValueError: `mask_ratio` is outside [0, 1), or leaves no patch.
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(
            f"mask_ratio is the share of patches removed: at least 0, below 1. Received: mask_ratio={mask_ratio}"
        )
    count = int(num_patches * (1 - mask_ratio))
    if count < 1:
        raise ValueError(
            f"mask_ratio={mask_ratio} leaves none of {num_patches} patches visible; at least one is needed."
        )
    return count


def random_masking(noise, keep):
    """Keeps the `keep` patches of smallest noise in each sample.

    Args:
        noise: (batch, num_patches) floats; ties go to the patch that comes first.
        keep: number of patches that stay visible.

    Returns:
        ids_keep: (batch, keep) int32 numbers of the visible patches, by ascending noise.
        ids_restore: (batch, num_patches) int32; where each patch stands in the sequence [visible, removed].
        mask: (batch, num_patches) float32, 1 = removed, 0 = kept.
    """
    ids_shuffle = ops.cast(ops.argsort(noise, axis=1), "int32")  # (B, N)
    ids_restore = ops.cast(ops.argsort(ids_shuffle, axis=1), "int32")  # (B, N)
    mask = ops.cast(ids_restore >= keep, "float32")  # (B, N)
    return ids_shuffle[:, :keep], ids_restore, mask


def gather_tokens(tokens, ids):
    """Picks tokens by number, for each sample its own.

    A gather of rows of the flattened batch: its gradient is a sum of rows, several times faster on every backend
    than that of `ops.take_along_axis`, which scatters single numbers.

    Args:
        tokens: (batch, num_tokens, values).
        ids: (batch, num_picked) int32 numbers of tokens.

    Returns:
        (batch, num_picked, values).
    """
    _, num_tokens, values = tokens.shape
    offsets = ops.arange(ops.shape(ids)[0], dtype="int32")[:, None] * num_tokens  # (B, 1)
    return ops.take(ops.reshape(tokens, (-1, values)), ids + offsets, axis=0)  # (B, L, values)


def check_grid(num_patches, grid_size):
    """Raises ValueError unless the grid of `grid_size`, (rows, columns), has so many patches."""
    rows, columns = grid_size
    if num_patches != rows * columns:
        raise ValueError(
            f"The patches must be those of a grid of {rows} x {columns}, {rows * columns}. "
            f"Received: {num_patches} patches"
        )


def own_or_given_noise(noise, patches, num_draws, seed_generator):
    """The noise that came with the batch, or else the layer's own.

    Args:
        noise: (batch, num_draws) uniform numbers in [0, 1), or None.
        patches: (batch, num_patches, values); only its batch size is read.
        num_draws: numbers that each sample needs.
        seed_generator: of the own noise.

    Raises:
        ValueError: the noise given has another number of draws.
    """
    if noise is None:
        shape = (ops.shape(patches)[0], num_draws)
        return keras.random.uniform(shape, dtype="float32", seed=seed_generator)
    if noise.shape[1] not in (None, num_draws):
        raise ValueError(
            f"`noise` must have the {num_draws} draws a sample that this mask needs. Received: shape={noise.shape}"
        )
    return noise


@keras.saving.register_keras_serializable(package="keras_mae")
class RandomMasking(keras.layers.Layer):
    """Draws a new uniformly random mask for every sample.

    With `noise` given (the commands send it with every batch) the mask is a function of the noise alone, so that
    replicas never repeat each other and a resumed run repeats itself. Without it the layer draws its own;
    under tf.distribute, replicas may then draw the same masks.

    Args:
        mask_ratio: share of the patches removed.
        seed: seed of the layer's own draws, used where no noise is given.

    Call arguments:
        patches: (batch, num_patches, values); only its shape is read.
        noise: (batch, num_patches) float32, optional.

    Output shape:
        ids_keep (batch, num_visible), ids_restore (batch, num_patches), mask (batch, num_patches; 1 = removed).
    """

    def __init__(self, mask_ratio=0.75, seed=None, **kwargs):
        # Without autocast the noise keeps its float32 digits, and the mask its order, under mixed precision.
        super().__init__(autocast=False, **kwargs)
        num_visible(10**6, mask_ratio)
        self.mask_ratio = mask_ratio
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def num_draws(self, num_patches):
        """Noise values that each sample needs: one a patch."""
        return num_patches

    def call(self, patches, noise=None):
        num_patches = patches.shape[1]
        noise = own_or_given_noise(noise, patches, self.num_draws(num_patches), self.seed_generator)  # (B, N)
        return random_masking(noise, num_visible(num_patches, self.mask_ratio))

    def get_config(self):
        return {**super().get_config(), "mask_ratio": self.mask_ratio, "seed": self.seed}
