"""Draws what an encoder looks at: attention of the class token by head, and patches that are like a chosen one.

  python -m tools.attention --encoder=runs/base/export --images=a.jpg,b.png --output=attention.png
  python -m tools.attention --encoder=runs/base/export --data=SHARDS --layer=5 --patch=3,10

Of each image the heads' maps are one after the other, each from 0 (dark) to its own largest value; the last map is the
cosine of the marked patch's token with every other's, from the least (dark) to 1. The numbers below the maps are these
bounds. Nothing is masked. How images of other than three channels are shown: tools/array_pictures.py.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from keras_mae import commandline
from pipeline.view_options import default_resize_size
from tools.array_pictures import as_pictures
from tools.reconstruct import FIGURE_FORMATS, read_images, read_split

FLAGS = flags.FLAGS

CELL = 1.35  # inches
COLORS = "inferno"
MARK = "#35c9ff"


def read_patch(words: Sequence[str], grid_size: tuple[int, int]) -> tuple[int, int]:
    """(row, column) of the patch that is compared; without words the one in the middle.

    Raises:
        ValueError: there is no such patch.
    """
    if not words:
        return grid_size[0] // 2, grid_size[1] // 2
    if len(words) != 2 or not all(w.isdecimal() and int(w) < side for w, side in zip(words, grid_size, strict=True)):
        raise ValueError(
            f"patch takes ROW,COLUMN, up to {grid_size[0] - 1},{grid_size[1] - 1}. Received: {','.join(words)!r}"
        )
    return int(words[0]), int(words[1])


def draw(images: np.ndarray, attention: np.ndarray, similarity: np.ndarray, patch: tuple[int, int], path) -> None:
    """Writes the figure.

    Args:
        images: uint8 or uint16 (count, height, width, channels).
        attention: (count, num_heads, rows, columns), of `class_token_attention`.
        similarity: (count, rows, columns), of `patch_similarity`.
        patch: (row, column) of the patch that it is of.
        path: of the PNG (or whatever matplotlib knows by its ending).
    """
    from matplotlib.figure import Figure

    count, num_heads, *grid_size = attention.shape
    side = [size / number for size, number in zip(images.shape[1:3], grid_size, strict=True)]  # of a patch, pixels
    figure = Figure((CELL * (num_heads + 2), 1.18 * CELL * count + 0.2), layout="constrained")
    axes = figure.subplots(count, num_heads + 2, squeeze=False)
    titles = ["image", *(f"head {number}" for number in range(num_heads)), "like the patch"]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    for row, picture, heads, likeness in zip(axes, as_pictures(images), attention, similarity, strict=True):
        row[0].imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
        _mark(row[0], patch, side)
        for axis, values in zip(row[1:-1], heads, strict=True):
            axis.imshow(values, cmap=COLORS, vmin=0)
            axis.set_xlabel(f"0 to {values.max():.2g}", fontsize=7)
        row[-1].imshow(likeness, cmap=COLORS, vmax=1)
        row[-1].set_xlabel(f"{likeness.min():.2f} to 1", fontsize=7)
        _mark(row[-1], patch, (1, 1))
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(path, dpi=130)


def _mark(axis, patch, side):
    from matplotlib.patches import Rectangle

    left, top = patch[1] * side[1] - 0.5, patch[0] * side[0] - 0.5  # the middle of pixel 0 is 0
    axis.add_patch(Rectangle((left, top), side[1], side[0], fill=False, edgecolor=MARK, linewidth=1.2))


def main(argv):
    from keras_mae.models.backbone import block_numbers
    from keras_mae.training.data_errors import DataError, named_data_errors
    from keras_mae.training.run_dir import description_above
    from keras_mae.training.saved_model import load_encoder
    from tools.attention_maps import class_token_attention, patch_similarity

    with commandline.user_mistakes(ValueError, DataError), named_data_errors():
        if bool(FLAGS.images) == (FLAGS.data is not None):
            raise ValueError("Give either --images=FILE,FILE or --data=SHARDS.")
        if pathlib.Path(FLAGS.output).suffix not in FIGURE_FORMATS:
            raise ValueError(f"--output must end in {', '.join(FIGURE_FORMATS)}. Received: {FLAGS.output}")
        encoder = load_encoder(FLAGS.encoder)
        (block,) = block_numbers([FLAGS.layer], encoder.depth)
        patch = read_patch(FLAGS.patch, encoder.grid_size)
        size, channels = encoder.image_size, encoder.channels
        description = description_above(pathlib.Path(FLAGS.encoder))
        resize_size = (description["recipe"]["resize_size"] if description else None) or default_resize_size(size)
        if FLAGS.images:
            images = read_images(FLAGS.images, size, channels, resize_size)
        else:
            images = read_split(FLAGS.data, FLAGS.split, FLAGS.count, size, channels, resize_size)
    attention = class_token_attention(encoder, images, block)
    draw(images, attention, patch_similarity(encoder, images, block, patch), patch, FLAGS.output)
    print(f"{FLAGS.output}: {len(images)} images, block {block}, patch {patch[0]},{patch[1]}")
    return 0


def define_flags():
    flags.DEFINE_string(
        "encoder", None, "Encoder or classifier: .keras, SavedModel, export or run folder.", required=True
    )
    flags.DEFINE_list("images", None, "Image files, separated by commas.")
    flags.DEFINE_string("data", None, "Folder of a shard set.")
    flags.DEFINE_string("split", None, "Split of the shard set; unset: val, or the only one.")
    flags.DEFINE_integer("count", 4, "Images of the shard set to draw.", lower_bound=1)
    flags.DEFINE_integer("layer", -1, "Number of the block; -1 is the last.")
    flags.DEFINE_list("patch", [], "ROW,COLUMN of the patch that the others are compared with; unset: in the middle.")
    flags.DEFINE_string("output", "attention.png", "File of the figure.")


def entry_point():
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
