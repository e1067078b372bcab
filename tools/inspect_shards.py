"""Shows what is in a shard set: a table of numbers, sizes, classes and damage, and a figure with a contact sheet.

  python -m tools.inspect_shards --shards=SHARDS --output=inspection.png

Numbers of images, their bytes and their labels are exact. Widths, heights, colours and damage come from the headers
of a random sample of images (--samples); the same seed takes the same sample.
"""

import collections
import contextlib
import dataclasses
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from PIL import Image, UnidentifiedImageError

from keras_mae import commandline
from keras_mae.commandline import CommandError
from pipeline.array_files import is_array, read_array, read_array_header
from pipeline.atomic import open_atomically, temporary_path
from pipeline.image_headers import read_header
from pipeline.locations import Location, SourceError, is_url, join, open_file, read_location
from pipeline.manifest import ManifestError, Shard, ShardSet, Split, load_manifest
from pipeline.shard_index import ShardIndex, parse_label, read_index
from tools.array_pictures import as_pictures
from tools.progress import Progress
from tools.shard_figures import NUM_THUMBNAILS, crop_thumbnail, draw_inspection, table

FLAGS = flags.FLAGS

MISSING_LABEL, BAD_LABEL = -1, -2
ReadPart = Callable[[int, int], bytes]  # of a tar: from offset and size


class OpenedImage(NamedTuple):
    """What an image tells without being decoded.

    Attributes:
        width: pixels, as stored.
        height: pixels, as stored.
        mode: Pillow's name of the colour space: "RGB", "L" (grey), "CMYK", ...; of an array its type and channels.
        format: Pillow's name of the format of the contents: "JPEG", "PNG", ...; "NPY" of an array.
        is_turned: whether its EXIF orientation asks viewers to turn or mirror the stored pixels; readers do not.
    """

    width: int
    height: int
    mode: str
    format: str
    is_turned: bool


class Thumbnail(NamedTuple):
    """The middle square of an image: uint8 (side, side, 3), and its label as in `SplitInspection.labels`, or None."""

    pixels: np.ndarray
    label: int | None


@dataclasses.dataclass(frozen=True)
class SplitInspection:
    """What is in one split.

    Attributes:
        num_shards: its tars.
        tar_bytes: of its tars together.
        image_bytes: int64 (samples,): size of every image file, in the split's order.
        extensions: number of images by the extension they are stored with.
        labels: int32 (samples,): MISSING_LABEL where a sample has none, BAD_LABEL where it is no number of a class;
            None if the shard set has no classes.
        num_sampled: images that were looked into.
        opened: those of them that are whole, in the split's order.
        damaged: a sentence for each of the others.
        thumbnails: of NUM_THUMBNAILS of them, or fewer, in the split's order.
    """

    num_shards: int
    tar_bytes: int
    image_bytes: np.ndarray
    extensions: Mapping[str, int]
    labels: np.ndarray | None
    num_sampled: int
    opened: tuple[OpenedImage, ...]
    damaged: tuple[str, ...]
    thumbnails: tuple[Thumbnail, ...]

    @property
    def num_samples(self) -> int:
        return len(self.image_bytes)

    @property
    def num_unlabelled(self) -> int:
        """Samples without a label, though the shard set has classes."""
        return 0 if self.labels is None else int(np.sum(self.labels == MISSING_LABEL))

    @property
    def num_bad_labels(self) -> int:
        """Samples whose label is no number of a class."""
        return 0 if self.labels is None else int(np.sum(self.labels == BAD_LABEL))

    @property
    def widths(self) -> np.ndarray:
        """int64 (opened,), pixels."""
        return np.array([image.width for image in self.opened], np.int64)

    @property
    def heights(self) -> np.ndarray:
        """int64 (opened,), pixels."""
        return np.array([image.height for image in self.opened], np.int64)


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What is in a shard set.

    Attributes:
        root: its folder.
        classes: class names, or None.
        splits: by name, in the manifest's order; only the one that was asked for, if one was.
    """

    root: str
    classes: tuple[str, ...] | None
    splits: dict[str, SplitInspection]

    def class_counts(self, split: str) -> np.ndarray:
        """int64 (classes,): how many samples of a split have each label."""
        labels = self.splits[split].labels
        return np.bincount(labels[labels >= 0], minlength=len(self.classes))


def inspect_shards(
    root: str | os.PathLike,
    split: str | None = None,
    output: str | os.PathLike | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> Inspection:
    """Looks into a shard set, and draws a figure if asked to.

    Args:
        root: folder of the shard set.
        split: name of the split to look into; None: all.
        output: PNG file to write, with a contact sheet of the largest split; None: no figure.
        samples: images of each split to open.
        seed: of the choice of these images.

    Raises:
        ManifestError: there is no such shard set or split, or it is damaged.
        CommandError: `output` cannot be written.
    """
    if output is not None:
        _check_output(Path(output))
    shard_set = load_manifest(root)
    splits = list(shard_set.splits.values()) if split is None else [shard_set.split(split)]
    if not splits:
        raise ManifestError(f"{root} has no splits, so there is nothing to inspect; make one with tools.make_shards")
    shards = [shard for one in splits for shard in one.shards]
    progress = Progress(sum(shard.samples for shard in shards), sum(shard.bytes for shard in shards))
    found = {}
    try:
        for one in splits:
            found[one.name] = _inspect_split(shard_set, one, samples, seed, progress)
    finally:
        progress.close()
    inspection = Inspection(str(root), shard_set.classes, found)
    if output is not None:
        with open_atomically(output) as file:
            draw_inspection(inspection, file)
    return inspection


def _check_output(output: Path) -> None:
    # Before the work, which may take minutes.
    if output.suffix.lower() != ".png":
        raise CommandError(f"--output must end in .png, received {output}")
    if output.is_dir():
        raise CommandError(f"--output={output} is a folder; expected the name of a file")
    trial = temporary_path(output)
    try:
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise CommandError(f"--output={output} cannot be written: {error.strerror}; choose another path") from None


def _inspect_split(shard_set: ShardSet, split: Split, samples: int, seed: int, progress: Progress) -> SplitInspection:
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(split.samples, min(samples, split.samples), replace=False))
    shown = rng.choice(chosen, min(NUM_THUMBNAILS, len(chosen)), replace=False)
    image_bytes, extensions, labels = [np.zeros(0, np.int64)], collections.Counter(), [np.zeros(0, np.int32)]
    images = _Images()
    start = 0  # number of the shard's first sample in the split
    for shard in split.shards:
        index = read_index(join(shard_set.root, shard.index), shard.samples, tar_bytes=shard.bytes)
        image_bytes.append(index.image_size)
        extensions.update(index.extensions)
        with _open_tar(join(shard_set.root, shard.file)) as read:
            if shard_set.classes is not None:
                labels.append(_read_labels(read, index, len(shard_set.classes)))
            for number in chosen[(chosen >= start) & (chosen < start + shard.samples)]:
                row = int(number) - start
                label = None if shard_set.classes is None else int(labels[-1][row])
                images.open(read, shard, index, row, label, with_thumbnail=number in shown)
        start += shard.samples
        progress.add(shard.samples, shard.bytes)
    return SplitInspection(
        num_shards=len(split.shards),
        tar_bytes=sum(shard.bytes for shard in split.shards),
        image_bytes=np.concatenate(image_bytes),
        extensions=extensions,
        labels=None if shard_set.classes is None else np.concatenate(labels),
        num_sampled=len(chosen),
        opened=tuple(images.opened),
        damaged=tuple(images.damaged),
        thumbnails=tuple(images.thumbnails),
    )


@contextlib.contextmanager
def _open_tar(tar: str) -> Iterator[ReadPart]:
    # What lies behind a URL is fetched whole: one request for each label would take days.
    if is_url(tar):
        data = read_location(Location(tar))
        yield lambda offset, size: data[offset : offset + size]
        return
    with open_file(tar) as file:
        yield lambda offset, size: os.pread(file.fileno(), size, offset)


def _read_labels(read: ReadPart, index: ShardIndex, num_classes: int) -> np.ndarray:
    # int32 (samples,). Some microseconds for each, whatever the size of the images between them.
    labels = np.full(len(index.keys), MISSING_LABEL, np.int32)
    for row in np.flatnonzero(index.label_size).tolist():
        label = parse_label(read(int(index.label_offset[row]), int(index.label_size[row])))
        labels[row] = BAD_LABEL if label is None or label >= num_classes else label
    return labels


class _Images:
    # Collects what a look into images gives.

    def __init__(self):
        self.opened: list[OpenedImage] = []
        self.damaged: list[str] = []
        self.thumbnails: list[Thumbnail] = []

    def open(
        self, read: ReadPart, shard: Shard, index: ShardIndex, row: int, label: int | None, with_thumbnail: bool
    ) -> None:
        try:
            encoded = read(int(index.image_offset[row]), int(index.image_size[row]))
            image, thumbnail = _open_image(encoded, with_thumbnail)
        except Exception as error:  # damaged bytes raise almost anything in Pillow
            # Pillow's own sentence on an unknown format shows an address in memory.
            reason = "it is no image that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
            self.damaged.append(f"{shard.file}: {index.keys[row]}.{index.extensions[row]}: {reason}")
            return
        self.opened.append(image)
        if thumbnail is not None:
            self.thumbnails.append(Thumbnail(thumbnail, label))


def _open_image(encoded: bytes, with_thumbnail: bool) -> tuple[OpenedImage, np.ndarray | None]:
    if is_array(encoded):
        return _open_array(encoded, with_thumbnail)
    header = read_header(encoded)  # raises where a file is cut, which Pillow opens without a word
    is_turned = header is not None and header.orientation != 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on large images and odd tags: they open all the same
        with Image.open(io.BytesIO(encoded)) as image:
            opened = OpenedImage(image.width, image.height, image.mode, image.format, is_turned)
            return opened, crop_thumbnail(image) if with_thumbnail else None


def _open_array(encoded: bytes, with_thumbnail: bool) -> tuple[OpenedImage, np.ndarray | None]:
    kind, height, width, _ = read_array_header(encoded)
    opened = OpenedImage(width, height, str(kind), "NPY", is_turned=False)
    if not with_thumbnail:
        return opened, None
    pixels = as_pictures(read_array(encoded))
    return opened, crop_thumbnail(Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]))


def main(argv: list[str]) -> int:
    del argv
    if not FLAGS.shards:
        raise CommandError("--shards=FOLDER is missing; see --help")
    with commandline.user_mistakes(ManifestError, SourceError):
        inspection = inspect_shards(FLAGS.shards, FLAGS.split, FLAGS.output or None, FLAGS.samples, FLAGS.seed)
    print(table(inspection))
    if FLAGS.output:
        print(f"\nThe figure is {FLAGS.output}")
    return 0


def define_flags() -> None:
    """Defines the command's flags; not at import, because other commands have flags of the same names."""
    flags.DEFINE_string("shards", None, "Folder of the shard set.")
    flags.DEFINE_string("split", None, "Split to look into; unset: all.")
    flags.DEFINE_string("output", "inspection.png", "PNG file of the figure; empty: none.")
    flags.DEFINE_integer("samples", 2000, "Images of each split to open, taken at random.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the choice of these images.", lower_bound=0)


def entry_point() -> None:
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
