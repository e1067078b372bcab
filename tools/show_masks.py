"""Draws the kinds of masks side by side, like Figure 6 of the paper: what each one leaves of an image.

  python -m tools.show_masks --output=masks.png
  python -m tools.show_masks --data=SHARDS --count=6
  python -m tools.show_masks --images=a.jpg,b.png --masks=random:.75,random:.9,block:.6

Without images it draws the masks of a plain grid. Every cell of the figure is a new draw.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from keras_mae import commandline
from keras_mae.commandline import CommandError
from pipeline.argument_checks import sides
from pipeline.atomic import open_atomically
from pipeline.view_options import default_resize_size
from tools.array_pictures import as_pictures
from tools.shard_figures import STYLE

if TYPE_CHECKING:
    import keras

FLAGS = flags.FLAGS

FIGURE_6 = "random:.75,block:.5,block:.75,grid:.75"
DEFAULT_COUNT = 4
MASKED_LEVEL, PLAIN_LEVEL, LINE_LEVEL = 128, 250, 205
PLAIN_PATCH_SIZE = 16  # pixels
CELL, TITLE_HEIGHT, MARGIN = 1.9, 0.3, 0.15  # inches
DOTS_PER_INCH = 100


def make_maskings(texts: Sequence[str], grid_size: tuple[int, int]) -> list[tuple[str, "keras.layers.Layer"]]:
    """Masking layers, and before each the title of its column, such as "block 50%".

    Args:
        texts: such as "block:.5": the kind of masks, and the share of the patches removed.
        grid_size: (rows, columns) of the patch grid.

    Raises:
        CommandError: a text is not written so, or names a mask that cannot be.
    """
    from keras_mae.layers import MASKINGS, make_masking  # takes seconds

    maskings = []
    for text in texts:
        kind, _, number = text.strip().partition(":")
        try:
            ratio = float(number)
        except ValueError:
            ratio = None
        if ratio is None or kind not in MASKINGS:
            raise CommandError(
                f"--masks must be a list of KIND:RATIO such as block:.5, the kind one of {', '.join(MASKINGS)}; "
                f"received {text!r}"
            )
        with commandline.user_mistakes(ValueError):
            maskings.append((f"{kind} {100 * ratio:.4g}%", make_masking(kind, ratio, grid_size)))
    return maskings


def plain_grid(grid_size: tuple[int, int]) -> np.ndarray:
    """An image of nothing but the borders of its patches: uint8 (height, width, 1)."""
    rows, columns = (np.arange(number * PLAIN_PATCH_SIZE) % PLAIN_PATCH_SIZE == 0 for number in grid_size)
    return np.where(rows[:, np.newaxis] | columns, LINE_LEVEL, PLAIN_LEVEL).astype(np.uint8)[..., np.newaxis]


def read_images(paths: Sequence[str], shards: str | None, split: str | None, count: int, side: int) -> np.ndarray:
    """Images as the evaluation view sees them, from files or else from a shard set.

    Args:
        paths: of image files.
        shards: folder of a shard set.
        split: of the shard set; None: val, or the only one.
        count: of the shard set's images.
        side: of the images, in pixels.

    Returns:
        uint8 (images, side, side, 3).

    Raises:
        CommandError: there is no such image, or it cannot be read.
    """
    from keras_mae.training.data_errors import DataError, named_data_errors
    from tools import reconstruct

    size = (side, side)
    with commandline.user_mistakes(ValueError, DataError), named_data_errors():
        if paths:
            images = reconstruct.read_images(paths, size, 3, default_resize_size(size))
        else:
            images = reconstruct.read_split(shards, split, count, size, 3, default_resize_size(size))
    return as_pictures(images)


def mask_images(
    images: np.ndarray, masking: "keras.layers.Layer", grid_size: tuple[int, int], random: np.random.Generator
) -> np.ndarray:
    """Greys out what a masking layer removes.

    Args:
        images: uint8 (images, height, width, channels).
        masking: of `make_maskings`.
        grid_size: (rows, columns) of the patch grid.
        random: where the masks' noise comes from.

    Returns:
        uint8 (images, height, width, channels).
    """
    num_patches, patch_size = grid_size[0] * grid_size[1], images.shape[1] // grid_size[0]
    patches = np.zeros((len(images), num_patches, 1), np.float32)  # only their number matters
    noise = random.random((len(images), masking.num_draws(num_patches)), dtype=np.float32)
    mask = np.asarray(masking(patches, noise=noise)[2]).reshape(-1, *grid_size)  # 1 = removed
    mask = mask.repeat(patch_size, axis=1).repeat(patch_size, axis=2)  # (images, H, W)
    return np.where(mask[..., np.newaxis] > 0, np.uint8(MASKED_LEVEL), images)


def draw(columns: Sequence[tuple[str, np.ndarray]], output: str) -> None:
    """Writes the figure.

    Args:
        columns: of each the title, and its images: uint8 (images, height, width, channels).
        output: PNG file.
    """
    rows = len(columns[0][1])
    width, height = 2 * MARGIN + len(columns) * CELL, 2 * MARGIN + TITLE_HEIGHT + rows * CELL
    with matplotlib.rc_context(STYLE):
        figure = Figure((width, height), dpi=DOTS_PER_INCH, facecolor="white")
        for column, (title, images) in enumerate(columns):
            for row, image in enumerate(images):
                left, bottom = MARGIN + (column + 0.025) * CELL, MARGIN + (rows - 1 - row + 0.025) * CELL
                axes = figure.add_axes((left / width, bottom / height, 0.95 * CELL / width, 0.95 * CELL / height))
                axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
                axes.set_axis_off()
                if row == 0:
                    axes.set_title(title, loc="center", pad=6)
        with open_atomically(output) as file:
            figure.savefig(file, format="png")


def _check_output(output: str) -> None:
    if not output.lower().endswith(".png"):
        raise CommandError(f"--output must end in .png, received {output}")
    if os.path.isdir(output) or not os.path.isdir(os.path.dirname(output) or "."):
        raise CommandError(f"--output={output} cannot be written; expected the name of a file in a folder that exists")


def main(argv: list[str]) -> int:
    del argv
    _check_output(FLAGS.output)
    if FLAGS.images and FLAGS.data is not None:
        raise CommandError("--images and --data both say what to draw; give one of them")
    if FLAGS.split is not None and FLAGS.data is None:
        raise CommandError(f"--split={FLAGS.split} is of a shard set; give --data=SHARDS too")
    with commandline.user_mistakes(ValueError):
        side, _ = sides(FLAGS.image_size)
    if side % FLAGS.patch_size:
        raise CommandError(f"--image_size must be a multiple of --patch_size={FLAGS.patch_size}, received {side}")
    if not FLAGS.masks:
        raise CommandError("--masks is empty; expected a list of KIND:RATIO such as block:.5")
    grid_size = 2 * (side // FLAGS.patch_size,)
    maskings = make_maskings(FLAGS.masks, grid_size)
    count = FLAGS.count or len(FLAGS.images) or DEFAULT_COUNT
    columns = []
    if FLAGS.images or FLAGS.data is not None:
        images = read_images(FLAGS.images[:count], FLAGS.data, FLAGS.split, count, side)
        images = images[np.arange(count) % len(images)]
        columns.append(("original", images))
    else:
        images = plain_grid(grid_size)[np.newaxis].repeat(count, axis=0)
    random = np.random.default_rng(FLAGS.seed)
    columns += [(title, mask_images(images, masking, grid_size, random)) for title, masking in maskings]
    draw(columns, FLAGS.output)
    print(f"{FLAGS.output}: {count} rows of {', '.join(title for title, _ in columns)}")
    return 0


def define_flags() -> None:
    """Defines the command's flags; not at import, because other commands have flags of the same names."""
    flags.DEFINE_list("masks", FIGURE_6, "Columns of the figure: KIND:RATIO; kinds are random, block and grid.")
    flags.DEFINE_list("images", [], "Image files, separated by commas.")
    flags.DEFINE_string("data", None, "Folder of a shard set to take the images from.")
    flags.DEFINE_string("split", None, "Split of the shard set; unset: val, or the only one.")
    flags.DEFINE_integer(
        "count", None, "Rows; images are taken in turn. Unset: one an image file, or 4.", lower_bound=1
    )
    flags.DEFINE_integer("image_size", 224, "Side in pixels.")
    flags.DEFINE_integer("patch_size", 16, "Side of a patch in pixels.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the masks.", lower_bound=0)
    flags.DEFINE_string("output", "masks.png", "PNG file of the figure.")


def entry_point() -> None:
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
