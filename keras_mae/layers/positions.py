"""Two-dimensional sin-cos position table, as the reference lays it out: column first, half-blocks."""

import keras
import numpy as np
from keras import ops


def sincos_position_table(grid_size, embed_dim):
    """Fixed position table of a patch grid, with a row of zeros for the class token in front.

    omega_i = 10000^(-i / (D/4)) for i = 0 .. D/4-1; a row holds [sin(column w), cos(column w), sin(row w),
    cos(row w)]. Computed in float64.

    Args:
        grid_size: (rows, columns) of the patch grid.
        embed_dim: D, divisible by 4.

    Returns:
        NumPy float32 array (1 + rows * columns, embed_dim).

    Raises:
        ValueError: `embed_dim` is not divisible by 4.
    """
    if embed_dim % 4:
        raise ValueError(
            "The sin-cos position table needs a width divisible by 4 (sin and cos of row and column). "
            f"Received: embed_dim={embed_dim}"
        )
    rows, columns = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in grid_size), indexing="ij")
    omega = 10000.0 ** (-np.arange(embed_dim // 4, dtype=np.float64) / (embed_dim / 4))  # (D/4,)
    angles = [np.outer(axis.reshape(-1), omega) for axis in (columns, rows)]  # 2 x (N, D/4)
    table = np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)  # (N, D)
    return np.concatenate([np.zeros((1, embed_dim)), table]).astype("float32")  # (N+1, D)


@keras.saving.register_keras_serializable(package="keras_mae")
class PositionEmbedding(keras.layers.Layer):
    """Holds the position table; row 0 belongs to the class token.

    A weight, so that fine-tuning may train it; frozen (`trainable=False`) in pre-training and in the probe.

    Args:
        grid_size: (rows, columns) of the patch grid.
        embed_dim: width of the tokens, divisible by 4.

    Call arguments:
        ids: (batch, num_visible) integer numbers of patches; None for all of them.

    Output shape:
        Class row (1, embed_dim), and patch rows (batch, num_visible, embed_dim) for `ids`, else
        (num_patches, embed_dim).
    """

    def __init__(self, grid_size, embed_dim, **kwargs):
        super().__init__(**kwargs)
        self.grid_size = tuple(grid_size)
        self.embed_dim = embed_dim
        self._table = sincos_position_table(self.grid_size, embed_dim)

    def build(self, input_shape=None):
        self.table = self.add_weight(
            name="table",
            shape=self._table.shape,
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(self._table, dtype),
        )

    def call(self, ids=None):
        table = ops.convert_to_tensor(self.table)
        patches = table[1:]  # (N, D)
        if ids is not None:
            patches = ops.take(patches, ids, axis=0)  # (B, L, D)
        return table[:1], patches

    def get_config(self):
        return {**super().get_config(), "grid_size": self.grid_size, "embed_dim": self.embed_dim}
