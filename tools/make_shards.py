"""Makes a shard set, tars in WebDataset format and a manifest, from a folder of images.

  python -m tools.make_shards --input=IMAGES --output=SHARDS

IMAGES holds a folder of JPEG, PNG or WebP files for each class, or the files themselves (then without
labels). Images are stored as they are, in a shuffled order. Another split is added by running it again:

  python -m tools.make_shards --input=OTHER_IMAGES --output=SHARDS --split=val

or made in the same run, with --val_fraction. The same images, options and seed give the same bytes, whatever
the number of workers. A finished split is never overwritten.
"""

import contextlib
import dataclasses
import errno
import importlib.metadata
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from keras_mae import commandline
from keras_mae.commandline import CommandError
from pipeline import splitting, writing
from pipeline.manifest import (
    MANIFEST_NAME,
    ManifestError,
    Shard,
    ShardSet,
    Split,
    check_split_name,
    load_manifest,
    write_manifest,
)
from pipeline.sources import FolderSource, Item, Listing, Source, SourceError
from tools import worker_pool
from tools.progress import Progress
from tools.unfinished import clear_mark, unfinished_files

FLAGS = flags.FLAGS
SOURCES = {"folder": FolderSource}


def make_shards(
    source: Source,
    output: str | os.PathLike,
    split: str = "train",
    *,
    seed: int = 0,
    workers: int | None = None,
    shard_mb: float = 100.0,
    val_fraction: float | None = None,
    val_split: str = "val",
    log: Callable[[str], None] = print,
) -> ShardSet:
    """Writes the samples of a source as one split of a shard set, or as two.

    With more than one worker, a script that calls this needs `if __name__ == "__main__":` around its work,
    because the workers import it.

    Args:
        source: where the images are, for example `FolderSource("images")`.
        output: folder of the shard set; made if it is missing, added to if it holds other splits.
        split: name of the split.
        seed: decides the order of the samples, and which go to `val_split`.
        workers: processes that write; None: one for each core. Never changes the bytes.
        shard_mb: no tar is larger than this many MB (1e6 bytes), except one with a single image.
        val_fraction: share of each class that goes to a second split, in (0, 1); None: no second split.
        val_split: name of the second split.
        log: is given the lines to tell the user.

    Returns:
        The shard set as it is afterwards.

    Raises:
        CommandError: an option is out of range, or does not fit what `output` holds already.
        SourceError: the source has no images, is ambiguous, or holds a file that is not an image.
        ManifestError: `output` holds a damaged shard set, or a split name would not fit file names.
        OSError: `output` cannot be written.
    """
    workers = worker_pool.available_cores() if workers is None else workers
    names = _check_options(split, seed, workers, shard_mb, val_fraction, val_split)
    output = Path(output)
    _check_output(source, output)
    listing = source.scan()
    if listing.ignored:
        what = _number_of(len(listing.ignored), "file that is not an image", "files that are not images")
        log(f"ignored {what} by name: {_shown(listing.ignored)}")
    options = {
        "source": source.name,
        "source_fingerprint": listing.fingerprint(),
        "split": split,
        "seed": seed,
        "shard_mb": float(shard_mb),
        "val_fraction": val_fraction,
        "val_split": None if val_fraction is None else val_split,
    }
    existing = load_manifest(output) if (output / MANIFEST_NAME).exists() else None
    if existing is not None and _is_finished(existing, names, options):
        for name in names:
            clear_mark(output, name)
        log(f"{output} has {' and '.join(names)} of these images and options already: nothing to do")
        return existing
    listing = _with_known_classes(listing, existing)
    plans = _plan(listing, names, seed, shard_mb, val_fraction)
    with unfinished_files(output, {plan.split: plan.files() for plan in plans}):
        splits = dict(existing.splits) if existing is not None else {}
        for name, shards in _write_shards(output, plans, source, workers).items():
            splits[name] = Split(name, sum(shard.samples for shard in shards), tuple(shards), options)
        shard_set = ShardSet(str(output), listing.classes, splits, _versions())
        write_manifest(shard_set)
    log(_summary(shard_set, names))
    return shard_set


def _check_options(
    split: str, seed: int, workers: int, shard_mb: float, val_fraction: float | None, val_split: str
) -> list[str]:
    # Returns the names of the splits to make.
    if not 0 <= seed < 2**64:
        raise CommandError(f"--seed must be an integer from 0 to 2**64 - 1, received {seed}")
    if workers < 1:
        raise CommandError(f"--workers must be at least 1, received {workers}")
    if not 0 < shard_mb < float("inf"):
        raise CommandError(f"--shard_mb must be more than 0 (MB in a shard), received {shard_mb}")
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise CommandError(
            f"--val_fraction must lie between 0 and 1, both excluded, received {val_fraction}; "
            "leave it out to make no second split"
        )
    names = [split] if val_fraction is None else [split, val_split]
    for name in names:
        check_split_name(name)
    if len(set(names)) < len(names):
        raise CommandError(f"--split and --val_split must differ, received {split!r} for both")
    return names


def _check_output(source: Source, output: Path) -> None:
    root = getattr(source, "root", None)
    if root is not None and output.resolve().is_relative_to(Path(root).resolve()):
        raise CommandError(
            f"--output={output} lies in --input={root}, shards would lie among images; choose another folder"
        )
    if output.exists() and not output.is_dir():
        raise CommandError(f"--output={output} is a file; expected a folder, or a name that is free")


def _is_finished(existing: ShardSet, names: Sequence[str], options: dict) -> bool:
    # True: all splits are there, made the same way. False: none of them is. Anything else is an error.
    found = [name for name in names if name in existing.splits]
    for name in found:
        before = existing.splits[name].options
        differences = [
            f"{key} was {before.get(key)!r} and is now {options.get(key)!r}"
            for key in sorted(before.keys() | options.keys())
            if before.get(key) != options.get(key)
        ]
        if differences:
            raise CommandError(
                f"{existing.root} has a split {name!r} already, made otherwise: {'; '.join(differences)}. "
                "Choose another --split, or another --output"
            )
    if found and len(found) < len(names):
        missing = next(name for name in names if name not in found)
        raise CommandError(
            f"{existing.root} has {found[0]!r} but not {missing!r} of that run: {MANIFEST_NAME} was edited. "
            "Make both again in another --output"
        )
    return bool(found)


def _with_known_classes(listing: Listing, existing: ShardSet | None) -> Listing:
    # Labels of a further split follow the class list that the shard set has.
    if existing is None or not existing.splits or existing.classes == listing.classes:
        return listing
    if existing.classes is None or listing.classes is None:
        raise CommandError(
            f"the splits of {existing.root} have {_counted(existing.classes)}, and --input has "
            f"{_counted(listing.classes)}; labelled and unlabelled images need shard sets of their own: "
            "choose another --output"
        )
    unknown = sorted(set(listing.classes) - set(existing.classes))
    if unknown:
        missing = sorted(set(existing.classes) - set(listing.classes))
        raise CommandError(
            f"--input has classes that {existing.root} does not know: {_shown(unknown)} "
            f"(of those it knows, --input lacks: {_shown(missing)}). Expected a subset of its "
            f"{len(existing.classes)} classes; rename the folders, or choose another --output"
        )
    labels = [existing.classes.index(name) for name in listing.classes]
    items = tuple(dataclasses.replace(item, label=labels[item.label]) for item in listing.items)
    return dataclasses.replace(listing, items=items, classes=existing.classes)


def _counted(classes: Sequence[str] | None) -> str:
    return "no classes" if classes is None else _number_of(len(classes), "class", "classes")


def _number_of(count: int, singular: str, plural: str) -> str:
    return f"{count} {singular if count == 1 else plural}"


def _shown(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(map(repr, names[:limit])) + (", ..." if len(names) > limit else "") or "none"


@dataclasses.dataclass(frozen=True)
class _Plan:
    # The samples of a split in their order, and the range of them that each shard holds.
    split: str
    items: list[Item]
    ranges: list[range]

    def files(self) -> list[str]:
        tars = [writing.shard_name(self.split, number) for number in range(len(self.ranges))]
        return [name for tar in tars for name in (tar, writing.index_name(tar))]


def _plan(
    listing: Listing, names: Sequence[str], seed: int, shard_mb: float, val_fraction: float | None
) -> list[_Plan]:
    items = splitting.shuffle_items(listing.items, seed)
    parts = [items] if val_fraction is None else splitting.hold_out(items, val_fraction)
    if not parts[-1]:
        raise CommandError(
            f"--val_fraction={val_fraction} of {len(items)} images leaves none for {names[-1]!r}; enlarge it"
        )
    if len(items) > writing.MAX_SAMPLES:
        raise CommandError(f"--input has {len(items)} images; a split can hold {writing.MAX_SAMPLES}")
    return [
        _Plan(name, part, writing.assign_to_shards(part, int(shard_mb * 1e6)))
        for name, part in zip(names, parts, strict=True)
    ]


def _write_shards(output: Path, plans: Sequence[_Plan], source: Source, workers: int) -> dict[str, list[Shard]]:
    # Returns the shards of each split, in order.
    tasks = [
        (output, plan.split, number, samples.start, plan.items[samples.start : samples.stop], source)
        for plan in plans
        for number, samples in enumerate(plan.ranges)
    ]
    sizes = [sum(item.size for item in task[4]) for task in tasks]
    progress = Progress(sum(len(task[4]) for task in tasks), sum(sizes))
    shards: dict[int, Shard] = {}
    try:
        # Closed before anything is cleaned up, so that no worker is still writing then.
        with contextlib.closing(worker_pool.run_tasks(writing.write_shard, tasks, workers)) as results:
            for number, shard in results:
                shards[number] = shard
                progress.add(shard.samples, sizes[number])
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CommandError(
            f"the disk of {output} is full: about {sum(sizes) / 1e6:.0f} MB are needed, and {len(shards)} of "
            f"{len(tasks)} shards fitted. What this run wrote was removed; free some space, "
            "or choose another --output"
        ) from None
    finally:
        progress.close()
    ordered = [shards[number] for number in range(len(tasks))]
    return {plan.split: [ordered.pop(0) for _ in plan.ranges] for plan in plans}


def _versions() -> dict[str, str]:
    versions = {}
    for name, distribution in {"keras_mae": "keras-mae", "numpy": "numpy", "Pillow": "pillow"}.items():
        try:
            versions[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"  # run from its source tree
    return versions


def _summary(shard_set: ShardSet, names: Sequence[str]) -> str:
    splits = [shard_set.splits[name] for name in names]
    shards = [shard for split in splits for shard in split.shards]
    samples = " + ".join(f"{split.samples} samples ({split.name})" for split in splits)
    size = sum(shard.bytes for shard in shards) / 1e6
    classes = _counted(shard_set.classes)
    num_shards = _number_of(len(shards), "shard", "shards")
    return f"wrote {samples}, {classes}, {num_shards}, {size:.1f} MB, to {shard_set.root}"


def define_flags() -> None:
    """Defines the command's flags; not at import, because other commands have flags of the same names."""
    flags.DEFINE_string("source", "folder", f"Kind of --input: {', '.join(SOURCES)}.")
    flags.DEFINE_string("input", None, "Folder with a folder of images for each class, or with images.")
    flags.DEFINE_string("output", None, "Folder of the shard set; made if missing, added to otherwise.")
    flags.DEFINE_string("split", "train", "Name of the split to make.")
    flags.DEFINE_integer("seed", 0, "Decides the order of the images, and which ones go to --val_split.")
    flags.DEFINE_integer("workers", None, "Processes; default: one for each core. Never changes the bytes.")
    flags.DEFINE_float("shard_mb", 100.0, "No tar is larger than this, in MB (except one with a single image).")
    flags.DEFINE_float("val_fraction", None, "Share of each class to set aside as --val_split, in (0, 1).")
    flags.DEFINE_string("val_split", "val", "Name of the split that --val_fraction makes.")


def main(argv: list[str]) -> int:
    del argv
    if FLAGS.source not in SOURCES:
        raise CommandError(f"--source must be one of {', '.join(SOURCES)}, received {FLAGS.source!r}")
    for name in ("input", "output"):
        if not FLAGS[name].value:
            raise CommandError(f"--{name}=FOLDER is missing; see --help")
    with commandline.user_mistakes(ManifestError, SourceError):
        make_shards(
            SOURCES[FLAGS.source](FLAGS.input),
            FLAGS.output,
            FLAGS.split,
            seed=FLAGS.seed,
            workers=FLAGS.workers,
            shard_mb=FLAGS.shard_mb,
            val_fraction=FLAGS.val_fraction,
            val_split=FLAGS.val_split,
        )
    return 0


def entry_point() -> None:
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
