"""Position tables of another image size: resized as the reference's fine-tuning does, or computed anew.

Bicubic with a = -.75 and without antialiasing, corners not aligned: what PyTorch's
`torch.nn.functional.interpolate(mode="bicubic")` does, and with it the reference and Hugging Face's ViTMAE. timm
resizes with antialias=True, for which PyTorch takes a = -.5 and, where the grid shrinks, a wider kernel: its tables
differ.
"""

import numpy as np

from keras_mae.layers.positions import sincos_position_table

CUBIC = -0.75  # PyTorch's; TensorFlow's and Pillow's is -.5
POSITIONS = ("resize", "recompute")


def resize_position_table(table, from_grid, to_grid):
    """The table of another patch grid by bicubic interpolation; the class row stays as it is.

    Args:
        table: (1 + rows * columns of `from_grid`, embed_dim), class row first.
        from_grid: (rows, columns) of the patches that the table is for.
        to_grid: (rows, columns) wanted.

    Returns:
        NumPy float32 array (1 + rows * columns of `to_grid`, embed_dim).

    Raises:
        ValueError: the table is not one of `from_grid`.
    """
    table = np.asarray(table, "float64")
    rows, columns = from_grid
    if table.ndim != 2 or len(table) != 1 + rows * columns:
        raise ValueError(
            f"A position table of {rows}x{columns} patches has {1 + rows * columns} rows, the class token's first. "
            f"Received: shape {table.shape}"
        )
    patches = table[1:].reshape(rows, columns, -1)  # (rows, cols, D)
    down, across = (_cubic_weights(old, new) for old, new in zip(from_grid, to_grid, strict=True))
    patches = np.einsum("ar,rcd,bc->abd", down, patches, across, optimize=True)
    return np.concatenate([table[:1], patches.reshape(-1, table.shape[1])]).astype("float32")


def position_table_of_grid(table, from_grid, to_grid, positions="resize"):
    """The table for `to_grid`: itself where the grids are equal, else resized or computed anew.

    Args:
        table: (1 + rows * columns of `from_grid`, embed_dim), class row first.
        from_grid: (rows, columns) of the patches that the table is for.
        to_grid: (rows, columns) wanted.
        positions: "resize" (keeps what the table learned) or "recompute" (the sin-cos table of the new grid).

    Raises:
        ValueError: `positions` is neither of them.
    """
    if positions not in POSITIONS:
        raise ValueError(f"positions must be one of: {', '.join(POSITIONS)}. Received: {positions!r}")
    if tuple(from_grid) == tuple(to_grid):
        return np.asarray(table)
    if positions == "recompute":
        return sincos_position_table(to_grid, table.shape[1])
    return resize_position_table(table, from_grid, to_grid)


def _cubic_weights(old, new):
    """Matrix (new, old) of one axis; pixel centres at half numbers, the edge repeated outside."""
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centers).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        places = np.clip(first + tap, 0, old - 1)
        np.add.at(weights, (np.arange(new), places), _cubic(np.abs(centers - first - tap)))
    return weights


def _cubic(distance):
    """Keys' kernel with a = CUBIC."""
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
    far = CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
