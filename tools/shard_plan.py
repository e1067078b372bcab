"""What a run of the sharder will write, decided before anything is: options, order, and the cut into shards."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_mae.commandline import CommandError
from pipeline import splitting, writing
from pipeline.array_files import ArrayKind
from pipeline.image_files import ImageOptions
from pipeline.manifest import check_split_name
from pipeline.sources import Listing, Source
from pipeline.sources.base import UNKNOWN_SIZE
from pipeline.writing import ShardTask

# Samples in a shard where sizes are not known beforehand: 1 GB of web images, and what img2dataset uses.
DEFAULT_SHARD_SAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class ShardOptions:
    """All that decides the bytes of a split, besides the source.

    Attributes:
        split: name of the split.
        seed: decides the order of the samples, and which go to `val_split`; 0 to 2**64 - 1.
        shard_mb: no tar is larger than this many MB (1e6 bytes), except one with a single sample, and where
            images are re-encoded to more bytes than they had.
        shard_samples: no tar holds more samples; None: no limit where sizes are known (they are not behind
            URLs), else `DEFAULT_SHARD_SAMPLES`.
        val_fraction: share of each class that goes to a second split, in (0, 1); None: no second split.
        val_split: name of the second split.
        images: how images are checked and stored.

    Raises:
        CommandError: a value is out of its range.
        ManifestError: a name would not fit file names.
    """

    split: str = "train"
    seed: int = 0
    shard_mb: float = 100.0
    shard_samples: int | None = None
    val_fraction: float | None = None
    val_split: str = "val"
    images: ImageOptions = ImageOptions()

    def __post_init__(self):
        if not 0 <= self.seed < 2**64:
            raise CommandError(f"--seed must be an integer from 0 to 2**64 - 1, received {self.seed}")
        if not 0 < self.shard_mb < float("inf"):
            raise CommandError(f"--shard_mb must be more than 0 (MB in a shard), received {self.shard_mb}")
        if self.shard_samples is not None and self.shard_samples < 1:
            raise CommandError(f"--shard_samples must be at least 1, received {self.shard_samples}")
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise CommandError(
                f"--val_fraction must lie between 0 and 1, both excluded, received {self.val_fraction}; "
                "leave it out to make no second split"
            )
        for name in self.splits:
            check_split_name(name)
        if len(set(self.splits)) < len(self.splits):
            raise CommandError(f"--split and --val_split must differ, received {self.split!r} for both")

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that are made together."""
        return (self.split,) if self.val_fraction is None else (self.split, self.val_split)

    def as_dict(self) -> dict[str, Any]:
        """The options as the manifest records them, all on one level."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["shard_mb"] = float(self.shard_mb)
        values["val_split"] = None if self.val_fraction is None else self.val_split
        images = dataclasses.asdict(values.pop("images"))
        if self.images.encoder == "keep" and self.images.resize_short_side is None and self.images.exif == "ignore":
            images["quality"] = None  # nothing is encoded with it
        return {**values, **images}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ShardOptions":
        """The options that a manifest records; what it records besides them is left out.

        Raises:
            CommandError: one is missing or of the wrong type.
        """
        try:
            images = {field.name: values[field.name] for field in dataclasses.fields(ImageOptions)}
            images["quality"] = images["quality"] or ImageOptions.quality
            own = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name != "images"}
            own["val_split"] = own["val_split"] or cls.val_split
            return cls(**own, images=ImageOptions(**images))
        except (KeyError, TypeError, ValueError) as error:
            raise CommandError(f"the manifest's options of a split are damaged: {error!r}") from None


@dataclasses.dataclass(frozen=True)
class SplitPlan:
    """The shards of one split before they are written.

    Attributes:
        split: its name.
        positions: int64 (samples,): places in the source's listing, in the order in which they are written.
        ranges: for each shard, which of `positions` it holds.
        tar_bytes: int64 (samples,): what each sample takes in a tar, `UNKNOWN_SIZE` where it is not known.
    """

    split: str
    positions: np.ndarray
    ranges: Sequence[range]
    tar_bytes: np.ndarray

    def shard_bytes(self, number: int) -> int:
        """About the bytes of a shard; 0 where they are not known beforehand."""
        samples = self.ranges[number]
        return int(np.maximum(self.tar_bytes[samples.start : samples.stop], 0).sum())

    def task(
        self,
        number: int,
        source: Source,
        root: str,
        label_map: np.ndarray | None,
        image_options: ImageOptions,
        skip_damaged: bool,
        arrays: ArrayKind | None,
    ) -> ShardTask:
        """The task of one shard.

        Args:
            number: of the shard.
            source: of the samples.
            root: of the shard set.
            label_map: the shard set's label for each label of the source; None: they are the same.
            image_options: as in `ShardTask`.
            skip_damaged: as in `ShardTask`.
            arrays: as in `ShardTask`.
        """
        samples = self.ranges[number]
        items = source.items(self.positions[samples.start : samples.stop].tolist())
        if label_map is not None:
            items = [dataclasses.replace(item, label=int(label_map[item.label])) for item in items]
        return ShardTask(root, self.split, number, samples.start, items, image_options, skip_damaged, arrays)


def plan_splits(listing: Listing, options: ShardOptions) -> list[SplitPlan]:
    """Orders the samples of a source, and cuts them into splits and shards.

    Raises:
        CommandError: a split would be empty, or too large.
    """
    positions = splitting.shuffled(len(listing), options.seed)
    parts = [positions]
    if options.val_fraction is not None:
        parts = list(splitting.hold_out(positions, listing.labels, options.val_fraction))
    if not len(parts[-1]):
        raise CommandError(
            f"--val_fraction={options.val_fraction} of {len(listing)} images leaves none for "
            f"{options.splits[-1]!r}; enlarge it, or add images (the last one of a class is never set aside)"
        )
    if len(listing) > writing.MAX_SAMPLES:
        raise CommandError(f"--input has {len(listing)} images; a split can hold {writing.MAX_SAMPLES}")
    max_samples = options.shard_samples
    if max_samples is None and (listing.tar_bytes == UNKNOWN_SIZE).any():
        max_samples = DEFAULT_SHARD_SAMPLES
    plans = []
    for name, part in zip(options.splits, parts, strict=True):
        tar_bytes = listing.tar_bytes[part]
        ranges = splitting.cut_into_shards(np.maximum(tar_bytes, 0), int(options.shard_mb * 1e6), max_samples)
        plans.append(SplitPlan(name, part, ranges, tar_bytes))
    return plans
