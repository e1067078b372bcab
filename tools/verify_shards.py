"""Checks a shard set against its manifest: sizes, hashes, indexes, members and labels of every tar.

  python -m tools.verify_shards --shards=SHARDS

Prints one line for each fault; exit code 0 if there is none.
"""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from keras_mae import commandline
from keras_mae.commandline import CommandError
from pipeline.manifest import (
    IMAGE_EXTENSIONS,
    LABEL_EXTENSION,
    MANIFEST_NAME,
    ManifestError,
    Member,
    Shard,
    ShardSet,
    file_faults,
    index_text,
    read_manifest,
)
from tools.progress import Progress

FLAGS = flags.FLAGS


def find_faults(shard_set: ShardSet) -> Iterator[str]:
    """Compares every file of a shard set with its manifest; reads every byte.

    Args:
        shard_set: as `pipeline.manifest.read_manifest` gives it.

    Yields:
        One sentence for each fault, that begins with the file's name.
    """
    shards = [shard for split in shard_set.splits.values() for shard in split.shards]
    progress = Progress(sum(shard.samples for shard in shards), sum(shard.bytes for shard in shards))
    try:
        for shard in shards:
            yield from _shard_faults(shard_set, shard)
            progress.add(shard.samples, shard.bytes)
    finally:
        progress.close()
    listed = {name for shard in shards for name in (shard.file, shard.index)}
    for path in sorted(Path(shard_set.root).iterdir()):
        if path.suffix in (".tar", ".idx") and path.name not in listed:
            yield f"{path.name}: {MANIFEST_NAME} does not list it (left by a killed run? then delete it)"
        elif path.suffix in (".unfinished", ".tmp") and path.name.startswith("."):
            yield f"{path.name}: make_shards is at work, or was killed (run it again, or delete the file)"


def _shard_faults(shard_set: ShardSet, shard: Shard) -> Iterator[str]:
    faults = file_faults(shard_set.root, shard)
    yield from faults
    tar = Path(shard_set.root, shard.file)
    if any(fault.startswith(shard.file) for fault in faults):
        return  # everything else would follow from that
    with open(tar, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != shard.sha256:
        yield f"{shard.file}: its contents have changed: sha256 is {found}, expected {shard.sha256}"
    samples = _read_samples(tar)
    if len(samples) != shard.samples:
        yield f"{shard.file}: holds {len(samples)} samples, expected {shard.samples}"
    index = Path(shard_set.root, shard.index)
    if index.is_file():
        yield from _index_faults(index, samples)
    yield from _sample_faults(tar, samples, shard_set.classes)


def _read_samples(tar: Path) -> list[list[Member]]:
    # The members of each sample, as tarfile finds them: neighbours that share a key, in tar order.
    samples: dict[str, list[Member]] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for info in archive:
                key, _, extension = info.name.partition(".")
                samples.setdefault(key, []).append(Member(extension, info.offset_data, info.size, info.name))
    except tarfile.TarError:
        pass  # a damaged header: what lies before it was found, and the number of samples tells
    return list(samples.values())


def _index_faults(index: Path, samples: list[list[Member]]) -> Iterator[str]:
    found = index.read_bytes().decode(errors="replace").split("\n")
    expected = index_text(samples).split("\n")
    if found == expected:
        return
    lines = zip(found, expected, strict=False)
    number, (received, wanted) = next(
        ((number, pair) for number, pair in enumerate(lines, 1) if pair[0] != pair[1]),
        (min(len(found), len(expected)), ("the end of the file", "further lines")),
    )
    yield f"{index.name}: differs from the tar at line {number}: {received[:80]!r}, expected {wanted[:80]!r}"


def _sample_faults(tar: Path, samples: list[list[Member]], classes: tuple[str, ...] | None) -> Iterator[str]:
    with open(tar, "rb") as file:
        for members in samples:
            key = members[0].name.partition(".")[0]
            images = [member for member in members if member.extension in IMAGE_EXTENSIONS]
            labels = [member for member in members if member.extension == LABEL_EXTENSION]
            if len(images) != 1:
                yield f"{tar.name}: sample {key} has {len(images)} images, expected 1"
            num_labels = 0 if classes is None else 1
            if len(labels) != num_labels:
                yield f"{tar.name}: sample {key} has {len(labels)} labels, expected {num_labels}"
            for member in labels:
                file.seek(member.offset)
                label = file.read(member.size)
                if classes is not None and not (label.isdigit() and int(label) < len(classes)):
                    expected = f"an integer from 0 to {len(classes) - 1}"
                    yield f"{tar.name}: sample {key} has label {label[:20]!r}, expected {expected}"


def verify_shards(root: str | os.PathLike) -> int:
    """Checks the shard set in a folder and prints what is wrong.

    Args:
        root: the folder.

    Returns:
        The number of faults.

    Raises:
        ManifestError: there is no shard set, or its manifest cannot be read.
    """
    shard_set = read_manifest(root)
    num_faults = 0
    for fault in find_faults(shard_set):
        print(fault)
        num_faults += 1
    splits = shard_set.splits.values()
    if num_faults:
        print(f"{num_faults} fault{'s' if num_faults > 1 else ''}")
    else:
        num_shards = sum(len(split.shards) for split in splits)
        print(f"{num_shards} shards, {sum(split.samples for split in splits)} samples: all good")
    return num_faults


def define_flags() -> None:
    """Defines the command's flags; not at import, because other commands have flags of the same names."""
    flags.DEFINE_string("shards", None, "Folder of the shard set.")


def main(argv: list[str]) -> int:
    del argv
    if not FLAGS.shards:
        raise CommandError("--shards=FOLDER is missing; see --help")
    with commandline.user_mistakes(ManifestError):
        return 1 if verify_shards(FLAGS.shards) else 0


def entry_point() -> None:
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
