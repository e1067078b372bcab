"""The sizes of a model, read from the shapes of its weights; what shapes cannot tell must be known or given."""

import math
from collections.abc import Mapping

import numpy as np

from keras_mae.recipes.sizes import SIZES
from keras_mae.training.weight_names import Naming, WeightNamesError, count_blocks

# By width. Equal shapes serve any number of heads, so for other widths nobody can know.
HEADS = {size["embed_dim"]: size["num_heads"] for name, size in SIZES.items() if name.startswith("vit_")}
DECODER_HEADS = {512: 16}


def infer_sizes(arrays: Mapping[str, np.ndarray], naming: Naming, kind: str, known: Mapping) -> dict:
    """Arguments of the model that these weights belong to.

    Args:
        arrays: in the names and the layout of `naming`; their names must have been checked.
        naming: theirs.
        kind: one of weight_names.KINDS.
        known: what shapes may not tell: `num_heads`, `decoder_num_heads`, `image_size` (side or (height, width)).

    Returns:
        image_size, patch_size, channels, embed_dim, depth, num_heads, mlp_ratio; with a decoder decoder_embed_dim,
        decoder_depth, decoder_num_heads; of a classifier num_classes.

    Raises:
        ValueError: a weight has too few axes, patches are not square, or something must be given.
    """
    kernel_name, table_name = (
        naming.names[f"encoder/{n}"] for n in ("patch_embedding/kernel", "position_embedding/table")
    )
    kernel, table = _with_axes(arrays, kernel_name, 4), _with_axes(arrays, table_name, 3)
    embed_dim, channels, height, width = kernel.shape
    depth, decoder_depth = count_blocks(naming, arrays)
    if height != width:
        raise WeightNamesError(f"Patches must be square. Received: {kernel_name} of shape {kernel.shape}")
    sizes = {
        "image_size": _image_size(table.shape[1] - 1, width, known.get("image_size")),
        "patch_size": width,
        "channels": channels,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": _heads("num_heads", embed_dim, known, HEADS),
    }
    hidden_name = naming.encoder_block.format(0) + naming.block_names["mlp_hidden/bias"][0]
    hidden_dim = len(arrays[hidden_name]) if depth else 4 * embed_dim
    sizes["mlp_ratio"] = _ratio(hidden_dim, embed_dim)
    if kind == "mae":
        decoder_dim = _with_axes(arrays, naming.names["decoder/position_embedding/table"], 3).shape[2]
        sizes["decoder_embed_dim"] = decoder_dim
        sizes["decoder_depth"] = decoder_depth
        sizes["decoder_num_heads"] = _heads("decoder_num_heads", decoder_dim, known, DECODER_HEADS)
    if kind == "classifier":
        sizes["num_classes"] = len(_with_axes(arrays, naming.names["head/bias"], 1))
    return sizes


def _with_axes(arrays, name, axes):
    if arrays[name].ndim != axes:
        raise WeightNamesError(f"{name} must have {axes} axes. Received: shape {arrays[name].shape}")
    return arrays[name]


def _image_size(num_patches, patch_size, given):
    """(height, width): as given, or of a square image."""
    if given is not None:
        height, width = (given, given) if isinstance(given, int) else given
        if (height // patch_size) * (width // patch_size) != num_patches or height % patch_size or width % patch_size:
            raise ValueError(
                f"image_size does not fit the position table of {num_patches} patches of {patch_size} pixels. "
                f"Received: {height}x{width}"
            )
        return height, width
    side = math.isqrt(num_patches)
    if side**2 != num_patches:
        raise ValueError(
            f"The position table of {num_patches} patches is not of a square image: give --image_size=HEIGHT,WIDTH."
        )
    return side * patch_size, side * patch_size


def _heads(name, width, known, table):
    heads = known.get(name) or table.get(width)
    if heads is None:
        raise ValueError(
            f"The shapes do not tell the number of attention heads of width {width}: give --{name}=NUMBER. "
            f"(Known: {', '.join(f'{w}: {h}' for w, h in table.items())})"
        )
    return heads


def _ratio(hidden_dim, embed_dim):
    """The mlp_ratio with which int(embed_dim * mlp_ratio) is `hidden_dim` to the last digit."""
    ratio = hidden_dim / embed_dim
    return ratio if int(embed_dim * ratio) == hidden_dim else math.nextafter(ratio, math.inf)
