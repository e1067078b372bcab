"""Makes splits with few labels of a shard set: the low-shot setting, 1%, 10% or n images of each class.

  python -m tools.label_subset --data=SHARDS --output=FEW --fraction=.01 --split_name=train_1percent
  python -m tools.label_subset --data=SHARDS --output=FEW --per_class=10 --seed=1 --split_name=train_10_each
  python -m keras_mae.finetune --data=FEW --split=train_1percent ...

Which images are chosen follows from the seed, the labels and the order of the split; with the same seed the smaller
subset is a part of the larger one. The images are copied as they are. FEW is a shard set of its own; the split to
evaluate on (--val_split) is put into it by links, which take no room. The same command again changes nothing.
"""

import hashlib
import os
import pathlib
import shutil
from collections.abc import Sequence

import numpy as np
from absl import flags

from keras_mae import commandline
from keras_mae.commandline import CommandError
from pipeline import splitting
from pipeline.locations import SourceError, is_url
from pipeline.manifest import MANIFEST_NAME, ManifestError, ShardSet, load_manifest, write_manifest
from pipeline.sources.base import Item, Listing, Source
from pipeline.sources.webdataset import WebDatasetSource
from tools.output_lock import locked
from tools.shard_plan import ShardOptions
from tools.sharding import make_shards

FLAGS = flags.FLAGS


class SubsetSource:
    """Some samples of a source.

    Args:
        source: of all samples, with labels.
        per_class: images of each class; None: `fraction` says how many.
        fraction: share of each class, above 0 and below 1.
        seed: decides which.
    """

    name = "subset"

    def __init__(self, source: Source, per_class: int | None = None, fraction: float | None = None, seed: int = 0):
        self.source = source
        self.per_class = per_class
        self.fraction = fraction
        self.seed = seed

    def scan(self) -> Listing:
        """Lists the chosen samples; see `Source.scan`.

        Raises:
            SourceError: a class has too few samples, or would have none.
        """
        whole = self.source.scan()
        self._positions = choose(whole, self.per_class, self.fraction, self.seed)
        return Listing(
            whole.tar_bytes[self._positions],
            whole.labels[self._positions],
            whole.classes,
            self._hash(whole.fingerprint),
            self._hash(whole.stamp),
        )

    def _hash(self, of_whole: str) -> str:
        text = f"{of_whole} {self.per_class} {self.fraction} {self.seed}"
        return hashlib.sha256(text.encode()).hexdigest()

    def items(self, positions: Sequence[int]) -> list[Item]:
        """The samples at some positions of the subset; see `Source.items`."""
        return self.source.items(self._positions[list(positions)].tolist())


def choose(listing: Listing, per_class: int | None, fraction: float | None, seed: int) -> np.ndarray:
    """Positions of the chosen samples, sorted: the first ones of each class in an order drawn from the seed.

    Raises:
        SourceError: a class has too few samples, or would have none.
    """
    shuffled = splitting.shuffled(len(listing), seed)
    if per_class is None:
        _, chosen = splitting.hold_out(shuffled, listing.labels, fraction)
    else:
        by_class = shuffled[np.argsort(listing.labels[shuffled], kind="stable")]
        counts = np.bincount(listing.labels, minlength=len(listing.classes))
        firsts = np.repeat(np.cumsum(counts) - counts, np.minimum(counts, per_class))
        ranks = np.concatenate([np.arange(min(count, per_class)) for count in counts])
        chosen = by_class[firsts + ranks]
    found = np.bincount(listing.labels[chosen], minlength=len(listing.classes))
    if (poor := np.flatnonzero(found < (per_class or 1))).size:
        wanted = f"{per_class} images" if per_class else f"an image in {fraction:g} of it"
        raise SourceError(
            f"{poor.size} of {len(listing.classes)} classes do not have {wanted}, such as "
            f"{listing.classes[poor[0]]!r} with {np.sum(listing.labels == poor[0])} images in all"
        )
    return np.sort(chosen)


def link_split(shard_set: ShardSet, name: str, output: pathlib.Path) -> None:
    """Puts a split of a local shard set into another, which may not be there yet, by hard links; else by copies.

    Raises:
        CommandError: `output` has another split of this name, or other classes.
    """
    split = shard_set.split(name)
    existing = load_manifest(output) if (output / MANIFEST_NAME).exists() else None
    if existing is not None:
        if existing.classes != shard_set.classes:
            raise CommandError(f"{output} has other classes than {shard_set.root}; choose another --output")
        if name in existing.splits:
            if existing.fingerprint(name) != shard_set.fingerprint(name):
                raise CommandError(f"{output} has another split {name!r} than --data; choose another --output")
            return
    for shard in split.shards:
        for file in (shard.file, shard.index):
            place_file(pathlib.Path(shard_set.root, file), output / file)
    splits = {} if existing is None else existing.splits
    write_manifest(ShardSet(str(output), shard_set.classes, {**splits, name: split}))


def place_file(source: pathlib.Path, target: pathlib.Path) -> None:
    """A hard link to a file, or a copy of it where there can be none."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def open_set(root: str, output: pathlib.Path) -> ShardSet:
    """The shard set that images are chosen from.

    Raises:
        CommandError: it has no classes, is not on this machine's disks, or is the output.
    """
    if is_url(root) or is_url(str(output)):
        raise CommandError("--data and --output must be folders, not URLs; copy the shard set first")
    shard_set = load_manifest(root)
    if not shard_set.classes:
        raise CommandError(f"{root} has no classes")
    if output.resolve() == pathlib.Path(root).resolve():
        raise CommandError("--output is a shard set of its own; choose another folder than --data")
    return shard_set


def main(argv: list[str]) -> int:
    del argv
    if (FLAGS.per_class is None) == (FLAGS.fraction is None):
        raise CommandError("Give either --per_class or --fraction")
    if FLAGS.fraction is not None and not 0 < FLAGS.fraction < 1:
        raise CommandError(f"--fraction must be above 0 and below 1, received {FLAGS.fraction:g}")
    output = pathlib.Path(FLAGS.output)
    with commandline.user_mistakes(ManifestError, SourceError):
        shard_set = open_set(FLAGS.data, output)
        split = shard_set.split(FLAGS.split or ("train" if "train" in shard_set.splits else None))
        val_split = FLAGS.val_split or ("val" if "val" in shard_set.splits else "none")
        options = ShardOptions(FLAGS.split_name, FLAGS.seed)
        if val_split in (split.name, options.split):
            raise CommandError(f"--val_split={val_split} is the split that images are chosen for, or from")
        names = [shard.file for shard in split.shards]
        tars = names[0] if len(names) == 1 else f"{{{','.join(names)}}}"
        whole = WebDatasetSource(pathlib.Path(FLAGS.data, tars), shard_set.classes)
        source = SubsetSource(whole, FLAGS.per_class, FLAGS.fraction, FLAGS.seed)
        listing = source.scan()
        output.mkdir(parents=True, exist_ok=True)
        if val_split != "none":
            with locked(output):
                link_split(shard_set, val_split, output)
        make_shards(source, output, options, workers=FLAGS.workers, listing=listing)
    return 0


def define_flags() -> None:
    """Defines the command's flags; not at import, because other commands have flags of the same names."""
    flags.DEFINE_string("data", None, "Folder of a shard set with classes.", required=True)
    flags.DEFINE_string("output", None, "Folder of the shard set to make, or to add to.", required=True)
    flags.DEFINE_string("split", None, "Split to choose from; unset: train, or the only one.")
    flags.DEFINE_string("split_name", "train", "Name of the split to make.")
    flags.DEFINE_string("val_split", None, "Split to link into OUTPUT; unset: val, where there is one; none: none.")
    flags.DEFINE_integer("per_class", None, "Images of each class.", lower_bound=1)
    flags.DEFINE_float("fraction", None, "Share of each class: .01 or .1; rounded, but none is left without an image.")
    flags.DEFINE_integer("seed", 0, "Decides which images.", lower_bound=0)
    flags.DEFINE_integer("workers", None, "Processes; default: one for each core. Never changes the bytes.")


def entry_point() -> None:
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
