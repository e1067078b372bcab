"""Draws what the model sees: images of a training or evaluation batch after cropping, augmenting and masking.

  python -m tools.show_batch --data=SHARDS --output=batch.png
  python -m tools.show_batch --data=SHARDS --step=1200 --mask_ratio=.75
  python -m tools.show_batch --data=SHARDS --view=train --rand_augment=rand-m9-mstd0.5-inc1 --repeats=8 --count=6

With --repeats each row is one image: as it is stored, then as it is seen in so many epochs. The images are those that
`pipeline.load` gives for the same arguments, and the masks those of pre-training, to the pixel and to the patch.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Sequence

import matplotlib
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from keras_mae import commandline
from keras_mae.commandline import CommandError
from pipeline.argument_checks import sides
from pipeline.atomic import open_atomically
from pipeline.augment import parse_rand_augment
from pipeline.host_decode import DecodeError, decode_image
from pipeline.host_draws import draw_rows, sample_seeds
from pipeline.host_engine import make_view
from pipeline.host_plans import evaluation_rows, training_rows
from pipeline.host_reading import BlockLoader, ReadingError
from pipeline.load_options import LoadOptions
from pipeline.locations import SourceError
from pipeline.manifest import ManifestError, load_manifest
from pipeline.philox import purpose_tag
from pipeline.view_options import VIEWS
from tools.array_pictures import as_pictures
from tools.shard_figures import GREY, STYLE

FLAGS = flags.FLAGS

# The feature of a batch that pre-training makes masks of
NOISE = "noise"
MASKED_LEVEL = 128
CELL, TITLE_HEIGHT, MARGIN = 1.9, 0.22, 0.3  # inches
HEAD = 0.65
COLUMNS = 8
TITLE_LETTERS = 26
DOTS_PER_INCH = 100


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sample as it is stored.

    Attributes:
        encoded: the image file.
        name: what to call it in a message.
        index: its number in the split.
        epoch: in which its batch takes it.
        class_name: None: unknown.
    """

    encoded: memoryview
    name: str
    index: int
    epoch: int
    class_name: str | None


def read_batch(options: LoadOptions, step: int, count: int) -> list[Sample]:
    """The first samples of a batch, not decoded.

    Args:
        options: say which batches. `start_step` is not used.
        step: number of the batch, from 0.
        count: samples to take.

    Raises:
        CommandError: there is no such batch, or none of so many samples.
        ReadingError: a shard cannot be read.
    """
    if count > options.batch_size:
        raise CommandError(f"--count must be at most --batch_size={options.batch_size}, received {count}")
    if options.num_batches is not None and step >= options.num_batches:
        raise CommandError(
            f"--step must be less than {options.num_batches}, the number of batches of "
            f"{options.batch_size} in {options.split.samples} samples, received {step}"
        )
    classes = options.shard_set.classes
    loader = BlockLoader(options.shard_set, options.split, labels="optional" if classes else "ignored")
    if options.is_training:
        plan = training_rows(options.order, loader, batch_size=options.batch_size, start_step=step)
    else:
        every = evaluation_rows(options.order, loader, host_batch_size=options.batch_size)
        plan = itertools.islice(every, step, None)
    places = ((block, row) for block, begin, end in next(plan) for row in range(begin, end))
    samples = []
    for block, row in itertools.islice(places, count):
        label = int(block.label[row])
        class_name = classes[label] if classes and label >= 0 else None
        samples.append(Sample(block.encoded(row), block.name(row), int(block.index[row]), block.epoch, class_name))
    return samples


def see(samples: Sequence[Sample], options: LoadOptions, later: int, mask_ratio: float, patch_size: int) -> np.ndarray:
    """Samples as the model sees them.

    Args:
        samples: of a batch.
        options: say how they are seen.
        later: epochs after the one in which the batch takes them.
        mask_ratio: share of the patches to grey out; 0: none.
        patch_size: side of a patch in pixels.

    Returns:
        uint8 or uint16 (samples, height, width, channels).

    Raises:
        CommandError: an image is damaged.
    """
    pairs = [(sample.epoch + later, sample.index) for sample in samples]
    view, images = make_view(options), np.empty((len(samples), *options.image_shape), options.dtype)
    epochs, index = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    seeds = sample_seeds(options.seed, epochs, index)
    for sample, seed, image in zip(samples, seeds, images, strict=True):
        try:
            view(sample.encoded, seed, image)
        except DecodeError as error:
            raise CommandError(f"Sample {sample.name} cannot be decoded: {error}") from None
    return mask_images(images, seeds, mask_ratio, patch_size) if mask_ratio else images


def mask_images(images: np.ndarray, seeds: np.ndarray, mask_ratio: float, patch_size: int) -> np.ndarray:
    """Greys out the patches that pre-training removes.

    Args:
        images: uint8 or uint16 (samples, height, width, channels).
        seeds: int64 (samples, 2), of the samples in an epoch.
        mask_ratio: share of the patches.
        patch_size: side of a patch in pixels.
    """
    from keras_mae.layers.masking import num_visible, random_masking  # takes seconds, and only masks need it

    rows, columns = images.shape[1] // patch_size, images.shape[2] // patch_size
    noise = np.empty((len(images), rows * columns), np.float32)
    draw_rows(seeds, purpose_tag(f"noise/{NOISE}"), noise)
    mask = np.asarray(random_masking(noise, num_visible(rows * columns, mask_ratio))[2])  # 1 = removed
    mask = mask.reshape(-1, rows, columns).repeat(patch_size, axis=1).repeat(patch_size, axis=2)  # (samples, H, W)
    level = images.dtype.type(MASKED_LEVEL if images.dtype == np.uint8 else images.max() / 2)
    return np.where(mask[..., np.newaxis] > 0, level, images)


def draw(
    samples: Sequence[Sample],
    draws: Sequence[np.ndarray],
    heading: str,
    output: str,
    channels: int,
    dtype: str = "uint8",
) -> None:
    """Writes the figure: a sheet of the only draw, or one row for each sample with all its draws.

    Images are shown as `as_pictures` shows them, one by one.

    Args:
        samples: as they are stored.
        draws: for each epoch, the samples as they are seen.
        heading: of the figure.
        output: PNG file.
        channels, dtype: of the stored images, as for `host_decode.decode_image`.
    """
    if len(draws) == 1:
        columns = min(COLUMNS, len(samples))
        cells = [(image, sample_title(sample)) for image, sample in zip(draws[0], samples, strict=True)]
    else:
        columns, cells = 1 + len(draws), []
        for number, sample in enumerate(samples):
            cells.append((decode_image(sample.encoded, channels, dtype).copy(), sample_title(sample)))
            cells += [(images[number], f"epoch {sample.epoch + later}") for later, images in enumerate(draws)]
    rows = -(-len(cells) // columns)
    width, height = max(2 * MARGIN + columns * CELL, 5), HEAD + rows * (CELL + TITLE_HEIGHT) + MARGIN
    with matplotlib.rc_context(STYLE):
        figure = Figure((width, height), dpi=DOTS_PER_INCH, facecolor="white")
        figure.text(MARGIN / width, 1 - 0.45 / height, heading, size=11, weight="bold")
        for number, (image, title) in enumerate(cells):
            row, column = divmod(number, columns)
            bottom = height - HEAD - (row + 1) * (CELL + TITLE_HEIGHT)
            place = ((MARGIN + column * CELL) / width, bottom / height, 0.95 * CELL / width, 0.95 * CELL / height)
            axes = figure.add_axes(place)
            axes.imshow(as_pictures(image).squeeze(), cmap="gray", vmin=0, vmax=255)
            axes.set_axis_off()
            axes.set_title(title, size=8, weight="normal", color=GREY, pad=3)
        with open_atomically(output) as file:
            figure.savefig(file, format="png")


def sample_title(sample: Sample) -> str:
    """The number and the class of a sample, in few letters that can be printed."""
    title = f"#{sample.index}" if sample.class_name is None else f"#{sample.index} {sample.class_name}"
    title = "".join(letter if letter.isprintable() else "?" for letter in title)
    return title if len(title) <= TITLE_LETTERS else f"{title[: TITLE_LETTERS - 1]}…"


def _check_figure(output: str, view: str, repeats: int, image_size: tuple[int, int], mask: tuple[float, int]) -> None:
    # What no other part of the software would find out.
    ratio, patch_size = mask
    if not output.lower().endswith(".png"):
        raise CommandError(f"--output must end in .png, received {output}")
    if os.path.isdir(output) or not os.path.isdir(os.path.dirname(output) or "."):
        raise CommandError(f"--output={output} cannot be written; expected the name of a file in a folder that exists")
    if view == "eval" and repeats > 1:
        raise CommandError(f"--repeats is for training: evaluation sees an image always alike, received {repeats}")
    if not 0 <= ratio < 1:
        raise CommandError(f"--mask_ratio is the share of patches removed, at least 0 and below 1, received {ratio}")
    if ratio and (image_size[0] % patch_size or image_size[1] % patch_size):
        raise CommandError(f"--image_size must be a multiple of --patch_size={patch_size}, received {image_size[0]}")


def _heading(options: LoadOptions, step: int, policy: str | None, mask_ratio: float) -> str:
    parts = [f"{options.split.name}, view {options.view}", f"batch {step}, {options.batch_size} samples"]
    parts += [f"seed {options.seed}"] if options.is_training else []
    parts += [policy] if policy else []
    parts += [f"{mask_ratio:.0%} masked"] if mask_ratio else []
    return " · ".join(parts)


def main(argv: list[str]) -> int:
    del argv
    if not FLAGS.data:
        raise CommandError("--data=SHARDS is missing; see --help")
    if FLAGS.epoch is not None and FLAGS.step is not None:
        raise CommandError("--epoch and --step both say which batch; give one of them")
    with commandline.user_mistakes(ValueError, ManifestError, SourceError, ReadingError):
        size = sides(FLAGS.image_size)
        _check_figure(FLAGS.output, FLAGS.view, FLAGS.repeats, size, (FLAGS.mask_ratio, FLAGS.patch_size))
        shard_set = load_manifest(FLAGS.data)
        options = LoadOptions(
            shard_set=shard_set,
            split=shard_set.split(FLAGS.split),
            view=FLAGS.view,
            batch_size=FLAGS.batch_size,
            image_size=size,
            channels=FLAGS.channels,
            seed=FLAGS.seed,
            min_area=FLAGS.min_area,
            resize_size=FLAGS.resize_size,
            rand_augment=parse_rand_augment(FLAGS.rand_augment) if FLAGS.rand_augment else None,
        )
        step = FLAGS.step or math.ceil((FLAGS.epoch or 0) * options.split.samples / options.batch_size)
        samples = read_batch(options, step, min(FLAGS.count, options.batch_size))
        draws = [see(samples, options, later, FLAGS.mask_ratio, FLAGS.patch_size) for later in range(FLAGS.repeats)]
    heading = _heading(options, step, FLAGS.rand_augment, FLAGS.mask_ratio)
    draw(samples, draws, heading, FLAGS.output, options.channels, options.dtype)
    print(f"{FLAGS.output}: {len(samples)} images of batch {step}")
    return 0


def define_flags() -> None:
    """Defines the command's flags; not at import, because other commands have flags of the same names."""
    flags.DEFINE_string("data", None, "Folder of a shard set.")
    flags.DEFINE_string("split", None, "Split of the shard set; unset: the only one.")
    flags.DEFINE_enum("view", "pretrain", VIEWS, "What is seen of an image; see `pipeline.load`.")
    flags.DEFINE_integer("image_size", 224, "Side in pixels.")
    flags.DEFINE_integer("channels", 3, "1 (grey) or 3 (RGB); of arrays theirs, of which the first three are shown.")
    flags.DEFINE_integer("batch_size", 64, "Of the training; decides, with --step, which samples come.")
    flags.DEFINE_integer("count", 16, "Images of the batch to draw.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the training.")
    flags.DEFINE_integer("step", None, "Number of the batch; unset: 0.", lower_bound=0)
    flags.DEFINE_integer("epoch", None, "Instead of --step: the first batch that lies in this epoch.", lower_bound=0)
    flags.DEFINE_integer("repeats", 1, "Epochs in which to show each image.", lower_bound=1)
    flags.DEFINE_float("min_area", None, "Smallest share of the area that a random crop takes; unset: the view's.")
    flags.DEFINE_integer("resize_size", None, "Short side before the centre crop of view eval; unset: the default.")
    flags.DEFINE_string("rand_augment", None, "Policy in timm's notation, such as rand-m9-mstd0.5-inc1.")
    flags.DEFINE_float("mask_ratio", 0.0, "Share of patches to grey out as pre-training does; 0: none.")
    flags.DEFINE_integer("patch_size", 16, "Side of a patch in pixels.", lower_bound=1)
    flags.DEFINE_string("output", "batch.png", "PNG file of the figure.")


def entry_point() -> None:
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
