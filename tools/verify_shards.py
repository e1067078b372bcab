"""Checks a shard set against its manifest: sizes, hashes, indexes, members and labels of every tar.

  python -m tools.verify_shards --shards=SHARDS [--deep]

Prints one line for each fault; exit code 0 if there is none. --deep decodes every image, too.

  python -m tools.verify_shards --shards=SHARDS --repair --input=IMAGES

writes what is broken again, byte for byte, from the source that the shards were made of (the flags that name it are
those of make_shards), and nothing else.
"""

import os
from collections.abc import Sequence

from absl import flags

from keras_mae import commandline
from keras_mae.commandline import CommandError
from pipeline.locations import SourceError
from pipeline.manifest import ManifestError, ShardSet, read_manifest
from tools import shard_flags, worker_pool
from tools.repair_shards import repair_shards
from tools.shard_faults import Fault, find_faults
from tools.shard_flags import SourceChoice

FLAGS = flags.FLAGS


def verify_shards(
    root: str | os.PathLike, *, splits: Sequence[str] | None = None, deep: bool = False, workers: int = 1
) -> int:
    """Checks the shard set in a folder and prints what is wrong.

    Args:
        root: the folder, or its URL.
        splits: names of the splits to look at; None: all.
        deep: whether every image is decoded.
        workers: processes.

    Returns:
        The number of faults.

    Raises:
        ManifestError: there is no shard set, its manifest cannot be read, or it has no such split.
    """
    shard_set = _read_set(root, splits)
    faults = sorted(find_faults(shard_set, splits=splits, deep=deep, workers=workers), key=_place)
    for fault in faults:
        print(fault.text)
    _print_verdict(shard_set, splits, faults)
    return len(faults)


def _read_set(root: str | os.PathLike, splits: Sequence[str] | None) -> ShardSet:
    shard_set = read_manifest(root)
    for name in splits or ():
        shard_set.split(name)
    return shard_set


def _place(fault: Fault) -> tuple:
    return (True, "", 0) if fault.number is None else (False, fault.split, fault.number)


def _print_verdict(shard_set: ShardSet, splits: Sequence[str] | None, faults: Sequence[Fault]) -> None:
    chosen = [split for split in shard_set.splits.values() if splits is None or split.name in splits]
    if faults:
        print(f"{len(faults)} fault{'s' if len(faults) > 1 else ''}")
    else:
        num_shards = sum(len(split.shards) for split in chosen)
        print(f"{num_shards} shards, {sum(split.samples for split in chosen)} samples: all good")


def define_flags() -> None:
    """Defines the command's flags; not at import, because other commands have flags of the same names."""
    flags.DEFINE_string("shards", None, "Folder of the shard set, or its URL.")
    flags.DEFINE_string("split", None, "The only split to look at; default: all.")
    flags.DEFINE_bool("deep", False, "Decode every image, too.")
    flags.DEFINE_integer("workers", None, "Processes; default: one for each core.")
    flags.DEFINE_bool("repair", False, "Write what is broken again, from the source that the flags below name.")
    shard_flags.define_source_flags("For --repair: what the shards were made of.")


def main(argv: list[str]) -> int:
    del argv
    if not FLAGS.shards:
        raise CommandError("--shards=FOLDER is missing; see --help")
    workers = worker_pool.checked_workers(FLAGS.workers)
    splits = [FLAGS.split] if FLAGS.split else None
    choice = SourceChoice(**shard_flags.read_flags(SourceChoice, FLAGS))
    with commandline.user_mistakes(ManifestError, SourceError):
        if not FLAGS.repair:
            if choice != SourceChoice():
                raise CommandError("a source is named, but not --repair; add --repair to mend the shards from it")
            return 1 if verify_shards(FLAGS.shards, splits=splits, deep=FLAGS.deep, workers=workers) else 0
        _read_set(FLAGS.shards, splits)
        shard_set, left = repair_shards(FLAGS.shards, choice.open, splits=splits, deep=FLAGS.deep, workers=workers)
        if left:
            print("left:")
        for fault in left:
            print(fault.text)
        _print_verdict(shard_set, splits, left)
        return 1 if left else 0


def entry_point() -> None:
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
