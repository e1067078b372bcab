"""Mean and standard deviation of each channel of a shard set, for --pixel_mean and --pixel_std of the recipes.

  python -m tools.pixel_statistics --data=SHARDS [--max_images=20000] [--json=statistics.json]

Reads the images once, as the model sees them. Prints the two flags and nothing else on stdout, ready to paste, on the
scale 0..1: values of uint8 images over 255, of uint16 images over 65535.
"""

import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Iterable

import numpy as np
from absl import flags

from keras_mae import commandline
from keras_mae.training.data_errors import DataError
from pipeline.atomic import open_atomically
from tools.shard_images import check_output, define_image_flags, open_images
from tools.streaming_moments import Moments

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class PixelStatistics:
    """Of each channel, on the scale 0..1.

    Attributes:
        mean: float64 (channels,).
        std: float64 (channels,).
        num_pixels: that were looked at.
    """

    mean: np.ndarray
    std: np.ndarray
    num_pixels: int


def pixel_statistics(batches: Iterable[np.ndarray], channels: int) -> PixelStatistics:
    """Mean and deviation of the pixels of some images.

    Args:
        batches: arrays (images, height, width, channels), all of uint8 or all of uint16.
        channels: of the images.
    """
    moments, white = Moments.of_none(channels), 1
    for images in batches:
        white = np.iinfo(images.dtype).max  # the number that stands for 1
        moments = moments.merged(Moments.of(images.reshape(-1, channels)))
    return PixelStatistics(moments.mean / white, moments.std / white, moments.count)


def as_flags(statistics: PixelStatistics) -> str:
    """The two flags of the recipes."""
    values = {"pixel_mean": statistics.mean, "pixel_std": statistics.std}
    return " ".join(f"--{name}=" + ",".join(f"{value:.5g}" for value in values[name]) for name in values)


def main(argv: list[str]) -> int:
    if FLAGS.json:
        check_output(pathlib.Path(FLAGS.json), ".json")
    with commandline.user_mistakes():
        images = open_images(FLAGS)
    with commandline.user_mistakes(DataError):
        statistics = pixel_statistics(images, FLAGS.channels)
    num_images = statistics.num_pixels // math.prod(images.image_size)
    constant = np.flatnonzero(statistics.std == 0).tolist()
    print(f"{num_images} images of split {images.split.name}", file=sys.stderr)
    if constant:
        print(
            f"channels {constant} (from 0) have one value everywhere: a std of 0 cannot divide, give 1 there",
            file=sys.stderr,
        )
    print(as_flags(statistics))
    if FLAGS.json:
        values = {"pixel_mean": statistics.mean.tolist(), "pixel_std": statistics.std.tolist()}
        content = {**values, "images": num_images, "source": images.describe()}
        with open_atomically(FLAGS.json) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())
    return 0


def define_flags() -> None:
    """Defines the command's flags; not at import, because other commands have flags of the same names."""
    define_image_flags()
    flags.DEFINE_string("json", None, "File for the numbers in full precision.")


def entry_point() -> None:
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
