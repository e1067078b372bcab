"""One pass over the images of a split, or over a seeded part of them, for the tools that take statistics."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

import pipeline
from keras_mae.commandline import CommandError
from keras_mae.run_flags import define_reading_flags, reading_options
from keras_mae.training.data_errors import named_data_errors
from pipeline.argument_checks import sides
from pipeline.manifest import Split
from pipeline.order import permutation
from tools.progress import Progress

VIEWS = ("eval", "pretrain")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageChoice:
    """Which images, and how they are seen; the fields are flags.

    Attributes:
        data: folder of a shard set.
        split: None: train, or the only one.
        view: "eval" (centre crops, without randomness) or "pretrain" (random crops).
        image_size: side in pixels, or (height, width).
        channels: of the images.
        resize_size: short side before the centre crop of view "eval"; None: the pipeline's default.
        min_area: smallest share of the area in a random crop of view "pretrain"; None: the pipeline's default.
        flip: whether view "pretrain" mirrors half of the images.
        max_images: take no more than so many; None: all.
        seed: of the choice of `max_images`, and of the crops.
    """

    data: str
    split: str | None = None
    view: str = "eval"
    image_size: int | tuple[int, int] = 224
    channels: int = 3
    resize_size: int | None = None
    min_area: float | None = None
    flip: bool = True
    max_images: int | None = None
    seed: int = 0


class ShardImages:
    """The chosen images, each once, in batches.

    With `max_images`, view "eval" takes whole shards in a seeded order until they hold enough, and view "pretrain" the
    first images of epoch 0: either reads little more than it needs, and is a fair sample where the shards are shuffled.
    View "pretrain" takes each image's crop of epoch 0, but for a few of the last batch, which has the next epoch's too.

    Args:
        choice: which images.
        batch_size: images in a batch.
        max_corrupt: images that may be skipped because they cannot be decoded.
        reading: other arguments of `pipeline.load`, which change nothing of what is read.

    Raises:
        ValueError: the shard set or the split is missing or damaged, or an option is out of its range.
    """

    def __init__(self, choice: ImageChoice, *, batch_size: int, max_corrupt: int, reading: dict[str, Any]):
        self.choice = choice
        self.image_size = sides(choice.image_size)
        shard_set = pipeline.load_manifest(choice.data)
        self.split = shard_set.split(choice.split or ("train" if "train" in shard_set.splits else None))
        self.fingerprint = shard_set.fingerprint(self.split.name)
        self.count = min(choice.max_images or self.split.samples, self.split.samples)
        if choice.view == "eval" and self.count < self.split.samples:
            self.split = some_shards(self.split, self.count, choice.seed)
            shard_set = dataclasses.replace(shard_set, splits={self.split.name: self.split})
        self.batch_size = batch_size
        self._dataset = pipeline.load(
            shard_set,
            split=self.split.name,
            view=choice.view,
            batch_size=batch_size,
            image_size=self.image_size,
            channels=choice.channels,
            resize_size=choice.resize_size,
            min_area=choice.min_area,
            flip=choice.flip,
            seed=choice.seed,
            stats=pipeline.ReadingStats(max_corrupt),
            **reading,
        )

    def describe(self) -> dict[str, Any]:
        """What decides which pixels are seen, in plain values; not where they lie."""
        choice = {**dataclasses.asdict(self.choice), "image_size": list(self.image_size), "split": self.split.name}
        del choice["data"]
        if choice["view"] == "pretrain":
            choice["batch_size"] = self.batch_size
        return {**choice, "fingerprint": self.fingerprint}

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields arrays (images, height, width, channels), with a line of progress on stderr.

        Raises:
            DataError: an image or a shard cannot be read.
        """
        bytes_each = sum(shard.bytes for shard in self.split.shards) / self.split.samples
        progress = Progress(self.count, round(self.count * bytes_each))
        left, seen = self.count, np.zeros(self.split.samples, bool)
        batches = self._dataset.take(math.ceil(self.split.samples / self.batch_size))  # those of one epoch
        with named_data_errors():
            for batch in batches.as_numpy_iterator():
                images = _new_images(batch, seen)[:left]
                if len(images):
                    yield images
                progress.add(len(images), round(len(images) * bytes_each))
                left -= len(images)
                if not left:
                    break
        progress.close()


def _new_images(batch, seen: np.ndarray) -> np.ndarray:
    # A batch of view "eval" may be filled up at weight 0, the last one of an epoch with images of the next.
    features, weights = (batch, None) if isinstance(batch, dict) else (batch[0], batch[2])
    rows = np.arange(len(features["index"])) if weights is None else np.flatnonzero(weights)
    index, first = np.unique(features["index"][rows], return_index=True)
    rows = np.sort(rows[first[~seen[index]]])
    seen[index] = True
    return features["image"][rows]


def some_shards(split: Split, count: int, seed: int) -> Split:
    """A split of whole shards of another, in a seeded order, as few as hold `count` samples."""
    order = permutation(len(split.shards), seed=seed, epoch=0)
    ends = np.cumsum([split.shards[number].samples for number in order])
    needed = 1 + int(np.searchsorted(ends, count))
    chosen = tuple(split.shards[number] for number in sorted(order[:needed]))
    return dataclasses.replace(split, shards=chosen, samples=int(ends[needed - 1]))


def define_image_flags() -> None:
    """Defines the fields of `ImageChoice`, and how to read."""
    flags.DEFINE_string("data", None, "Folder of a shard set, as tools.make_shards writes it.", required=True)
    flags.DEFINE_string("split", None, "Split to read; unset: train, or the only one.")
    flags.DEFINE_enum("view", "eval", VIEWS, "eval: centre crops; pretrain: random crops.")
    flags.DEFINE_list("image_size", ["224"], "Side in pixels, or height,width.")
    flags.DEFINE_integer("channels", 3, "Of the images.")
    flags.DEFINE_integer("resize_size", None, "Short side before the centre crop of view eval; unset: the default.")
    flags.DEFINE_float("min_area", None, "Smallest share of the area in a crop of view pretrain; unset: the default.")
    flags.DEFINE_bool("flip", True, "Mirror half of the images in view pretrain.")
    flags.DEFINE_integer("max_images", None, "Take no more images, chosen by the seed; unset: all.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the choice of --max_images, and of random crops.", lower_bound=0)
    flags.DEFINE_integer("batch_size", 64, "Images read at a time.", lower_bound=1)
    flags.DEFINE_integer("max_corrupt", 0, "Images that may be skipped because they cannot be decoded; each is named.")
    define_reading_flags()


def open_images(values: flags.FlagValues) -> ShardImages:
    """The images that the flags of `define_image_flags` name.

    Raises:
        ValueError: see `ShardImages`.
    """
    fields = {field.name: values[field.name].value for field in dataclasses.fields(ImageChoice)}
    size = numbers("image_size", fields.pop("image_size"), int)
    choice = ImageChoice(**fields, image_size=size[0] if len(size) == 1 else size)
    return ShardImages(
        choice, batch_size=values.batch_size, max_corrupt=values.max_corrupt, reading=reading_options(values)
    )


def check_output(path: pathlib.Path, suffix: str) -> None:
    """Finds out before the work whether a file can be written.

    Raises:
        CommandError: it cannot, or has another suffix.
    """
    if path.suffix != suffix:
        raise CommandError(f"The output must end in {suffix}, received {path}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise CommandError(f"{path} cannot be written; expected the name of a file in a folder that exists")


def numbers(name: str, words: Sequence[str], kind: type) -> tuple:
    """The words of a list flag as numbers.

    Raises:
        ValueError: one is no number; names the flag.
    """
    try:
        return tuple(kind(word) for word in words)
    except ValueError:
        raise ValueError(f"--{name} takes numbers separated by commas. Received: {','.join(words)!r}") from None
