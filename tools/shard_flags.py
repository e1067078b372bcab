"""Flags that say where images come from and what becomes of them, for the tools that read sources.

Flags are made from the fields of two dataclasses, `SourceChoice` here and `ShardOptions`, whose `images` hold
those of `ImageOptions`. A flag that the chosen source does not read is an error.
"""

import dataclasses
import os
from typing import Any

from absl import flags

from keras_mae.commandline import CommandError
from pipeline.image_files import ImageOptions
from pipeline.locations import Location, read_location
from pipeline.sources import (
    FolderSource,
    ImageNetTrainSource,
    ImageNetValSource,
    INaturalistSource,
    ListSource,
    PlacesSource,
    Source,
    WebDatasetSource,
)
from tools.shard_plan import ShardOptions

# Which flags each source reads; those in the first tuple it needs.
SOURCE_FLAGS = {
    "folder": (("input",), ()),
    "imagenet": ((), ("train_tar", "val_tar", "devkit")),
    "list": (("input",), ("image_root", "image_column", "label_column", "member", "classes")),
    "webdataset": (("input",), ("classes",)),
    "inaturalist": (("input", "annotations"), ()),
    "places": (("input", "file_list"), ("categories",)),
}


PATH_FLAGS = (
    *("input", "train_tar", "val_tar", "devkit", "image_root"),
    *("classes", "annotations", "file_list", "categories"),
)


@dataclasses.dataclass(frozen=True)
class SourceChoice:
    """A source as flags name it; the fields are the flags. "~/" before a path stands for the home folder."""

    source: str = "folder"
    input: str | None = None
    train_tar: str | None = None
    val_tar: str | None = None
    devkit: str | None = None
    image_root: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    member: tuple[str, ...] = ()
    classes: str | None = None
    annotations: str | None = None
    file_list: str | None = None
    categories: str | None = None

    def __post_init__(self):
        for name in PATH_FLAGS:
            path = getattr(self, name)
            if path is not None and path.startswith("~/"):  # shells leave it alone after "--input="
                object.__setattr__(self, name, os.path.expanduser(path))

    def open(self, split: str) -> dict[str, Source]:
        """The chosen source under the name of its split; ImageNet can be two, "train" and "val".

        Args:
            split: name for a source that does not name its splits itself.

        Raises:
            CommandError: a flag is missing, unknown, or of another source.
        """
        self._check()
        match self.source:
            case "folder":
                return {split: FolderSource(self.input)}
            case "imagenet":
                return self._open_imagenet()
            case "list":
                return {
                    split: ListSource(
                        self.input,
                        image_root=self.image_root,
                        image_column=self.image_column,
                        label_column=self.label_column,
                        classes=self.read_classes(),
                        members=dict(map(_split_member, self.member)),
                    )
                }
            case "webdataset":
                return {split: WebDatasetSource(self.input, classes=self.read_classes())}
            case "inaturalist":
                return {split: INaturalistSource(self.input, self.annotations)}
            case _:
                return {split: PlacesSource(self.input, self.file_list, self.categories)}

    def _check(self) -> None:
        if self.source not in SOURCE_FLAGS:
            raise CommandError(f"--source must be one of {', '.join(SOURCE_FLAGS)}, received {self.source!r}")
        needed, optional = SOURCE_FLAGS[self.source]
        for name in needed:
            if not getattr(self, name):
                raise CommandError(f"--{name} is missing: --source={self.source} needs it; see --help")
        for field in dataclasses.fields(self):
            if field.name not in ("source", *needed, *optional) and getattr(self, field.name):
                readers = [source for source, names in SOURCE_FLAGS.items() if field.name in (*names[0], *names[1])]
                raise CommandError(
                    f"--{field.name} is not read by --source={self.source}, but by {', '.join(readers)}; "
                    "leave it out, or choose that --source"
                )

    def _open_imagenet(self) -> dict[str, Source]:
        if not (self.train_tar or self.val_tar):
            raise CommandError("--source=imagenet needs --train_tar, or --val_tar and --devkit, or all three")
        if bool(self.val_tar) != bool(self.devkit):
            raise CommandError("--val_tar and --devkit go together: the labels of the val images are in the devkit")
        sources = {}
        if self.train_tar:
            sources["train"] = ImageNetTrainSource(self.train_tar)
        if self.val_tar:
            sources["val"] = ImageNetValSource(self.val_tar, self.devkit)
        return sources

    def read_classes(self) -> tuple[str, ...] | None:
        """The names in the file --classes; None without it."""
        if not self.classes:
            return None
        try:
            text = read_location(Location(self.classes)).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CommandError(
                f"--classes={self.classes} is not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
            ) from None
        names = tuple(line.strip() for line in text.split("\n") if line.strip())
        if not names or len(set(names)) < len(names):
            raise CommandError(f"--classes={self.classes} must hold one class name a line, each once")
        return names


def _split_member(text: str) -> tuple[str, str]:
    extension, colon, column = text.partition(":")
    if not (extension and colon and column):
        raise CommandError(f"--member must be EXTENSION:COLUMN, such as seg.png:mask_path, received {text!r}")
    return extension, column


def define_source_flags(required_input: str) -> None:
    """Defines the flags of `SourceChoice`.

    Args:
        required_input: text of --help for --input.
    """
    flags.DEFINE_string("source", "folder", f"Kind of source: {', '.join(SOURCE_FLAGS)}.")
    flags.DEFINE_string("input", None, required_input)
    flags.DEFINE_string("train_tar", None, "imagenet: ILSVRC2012_img_train.tar, path or URL; never unpacked.")
    flags.DEFINE_string("val_tar", None, "imagenet: ILSVRC2012_img_val.tar; its labels are in --devkit.")
    flags.DEFINE_string("devkit", None, "imagenet: ILSVRC2012_devkit_t12.tar.gz, or the folder it unpacks to.")
    flags.DEFINE_string("image_root", None, "list: folder or URL of relative image paths; default: the list's own.")
    flags.DEFINE_string("image_column", None, "list: column of the path or URL; default: path, image, file, url, ...")
    flags.DEFINE_string("label_column", None, "list: column of the label or class name; default: label, class, ...")
    flags.DEFINE_multi_string(
        "member", [], "list: EXTENSION:COLUMN, a further file of each sample, such as seg.png:mask_path; repeatable."
    )
    flags.DEFINE_string("classes", None, "list, webdataset: file with a class name a line, in the order of labels.")
    flags.DEFINE_string("annotations", None, "inaturalist: the JSON file of annotations.")
    flags.DEFINE_string("file_list", None, "places: lines of PATH LABEL, such as places365_train_standard.txt.")
    flags.DEFINE_string("categories", None, "places: categories_places365.txt.")


def define_shard_flags() -> None:
    """Defines the flags of `ShardOptions` and `ImageOptions`."""
    options, images = ShardOptions(), ImageOptions()
    flags.DEFINE_string("split", options.split, "Name of the split to make (imagenet makes train and val).")
    flags.DEFINE_integer("seed", options.seed, "Decides the order of the images, and which ones go to --val_split.")
    flags.DEFINE_float("shard_mb", options.shard_mb, "No tar is larger than this, in MB of images as they came.")
    flags.DEFINE_integer(
        "shard_samples", None, "No tar holds more samples; default: no limit, 10000 where images are behind URLs."
    )
    flags.DEFINE_float("val_fraction", None, "Share of each class to set aside as --val_split, in (0, 1).")
    flags.DEFINE_string("val_split", options.val_split, "Name of the split that --val_fraction makes.")
    flags.DEFINE_enum(
        "check", images.check, ["header", "decode"], "How each image is checked: its structure, or a full decode."
    )
    flags.DEFINE_enum(
        "encoder", images.encoder, ["keep", "jpeg", "webp"], "keep: bytes as they came; else all are encoded anew."
    )
    flags.DEFINE_integer("quality", images.quality, "Of images that are encoded anew, 1 to 100.")
    flags.DEFINE_integer(
        "resize_short_side", None, "Shrinks images whose short side is longer, in pixels; none is enlarged."
    )
    flags.DEFINE_bool(
        "skip_if_smaller",
        images.skip_if_smaller,
        "Keep an image as it came where it has fewer bytes than encoded anew.",
    )
    flags.DEFINE_enum(
        "exif", images.exif, ["ignore", "apply"], "apply: turns images upright as their EXIF orientation says."
    )


def read_flags(kind: type, values: flags.FlagValues | Any) -> dict[str, Any]:
    """The values of the flags that are named as the fields of a dataclass."""
    chosen = {}
    for field in dataclasses.fields(kind):
        if field.name in values:
            value = values[field.name].value
            chosen[field.name] = tuple(value) if isinstance(value, list) else value
    return chosen


def read_shard_options(values: flags.FlagValues) -> ShardOptions:
    """`ShardOptions` from the flags of `define_shard_flags`.

    Raises:
        CommandError: a value is out of its range.
    """
    try:
        images = ImageOptions(**read_flags(ImageOptions, values))
    except ValueError as error:
        raise CommandError(str(error)) from None
    return ShardOptions(**read_flags(ShardOptions, values), images=images)
