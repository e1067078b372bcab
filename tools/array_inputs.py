"""Whether the sharder's input is arrays (`.npy`) or pictures, found out before anything is written."""

from keras_mae.commandline import CommandError
from pipeline.array_files import ArrayKind, array_kind
from pipeline.image_files import ImageOptions
from pipeline.locations import SourceError, is_web, read_location
from pipeline.manifest import ShardSet
from pipeline.sources import Source

# Samples to look at for one that is not damaged.
_LOOKS = 20
_AS_THEY_ARE = ImageOptions()


def find_arrays(source: Source, num_samples: int, existing: ShardSet | None, options: ImageOptions) -> ArrayKind | None:
    """What the arrays of a source are; None where it has pictures. All of a shard set are like its first one.

    Args:
        source: of the samples, listed before.
        num_samples: that it has.
        existing: the shard set so far; None: there is none.
        options: how images are stored.

    Raises:
        CommandError: the shard set holds others, or the options would encode arrays anew.
        SourceError: the first samples are all damaged arrays; says what is wrong with the first of them.
    """
    arrays = _first_arrays(source, num_samples)
    for split in existing.splits.values() if existing is not None else ():
        if split.arrays != arrays:
            raise CommandError(
                f"the splits of {existing.root} hold {_described(split.arrays)}, and --input holds "
                f"{_described(arrays)}; they need shard sets of their own: choose another --output"
            )
    for name in ("encoder", "resize_short_side", "exif"):
        if arrays is not None and getattr(options, name) != getattr(_AS_THEY_ARE, name):
            raise CommandError(f"--{name} is for pictures; arrays (.npy) are stored as they are: leave it out")
    return arrays


def _described(arrays: ArrayKind | None) -> str:
    return "pictures (JPEG, PNG or WebP)" if arrays is None else f"arrays, {arrays}"


def _first_arrays(source: Source, num_samples: int) -> ArrayKind | None:
    first_fault = None
    for position in range(min(num_samples, _LOOKS)):
        (item,) = source.items([position])
        if is_web(item.image.file) and not item.image.file.endswith(".npy"):
            return None  # servers of a long list may be gone; each would have to be waited for
        try:
            data = read_location(item.image)
        except SourceError:
            continue  # said when the shards are written
        try:
            return array_kind(data)
        except ValueError as error:
            first_fault = first_fault or SourceError(f"{item.name!r} cannot be used: {error}")
    if first_fault is not None:
        raise first_fault
    return None
