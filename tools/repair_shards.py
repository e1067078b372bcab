"""Mends a shard set: what is broken is written again from the source, byte for byte, and nothing else is touched.

An index is made again from its tar, a sidecar from the manifest. A tar needs the source that it was made of; the
manifest remembers all options. What comes out has to be what the manifest lists; or, where the manifest itself is
stale or was edited, what lies there as a tar, and then the manifest is mended. Otherwise nothing is changed: the
source may be damaged, too.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

from keras_mae.commandline import CommandError
from pipeline import storage
from pipeline.locations import Location, is_url, join, read_location
from pipeline.manifest import MANIFEST_NAME, Shard, ShardSet, Split, read_manifest, write_manifest
from pipeline.shard_index import index_bytes
from pipeline.sidecars import sidecar_files
from pipeline.sources import Source
from pipeline.writing import WrittenShard, shard_name, write_shard
from tools.output_lock import locked
from tools.shard_faults import INDEX, SIDECAR, TAR, UNLISTED, Fault, find_faults, read_samples, sha256_of
from tools.shard_plan import ShardOptions, SplitPlan, plan_splits
from tools.shard_run import library_versions
from tools.sharding import known_classes

# Where shards are written before it is known whether they are right.
WORK_NAME = ".make_shards.repair"


def repair_shards(
    root: str | os.PathLike,
    open_source: Callable[[str], Mapping[str, Source]],
    *,
    splits: Sequence[str] | None = None,
    deep: bool = False,
    workers: int = 1,
    log: Callable[[str], None] = print,
) -> tuple[ShardSet, list[Fault]]:
    """Mends what `find_faults` finds.

    Args:
        root: folder of the shard set; a local one.
        open_source: gives the source of a split, by the split's name; called only if a tar is broken.
        splits: names of the splits to look at; None: all.
        deep: whether every image is decoded, too.
        workers: processes that look for faults.
        log: is given a line for each fault and for each file that was written.

    Returns:
        The shard set as it is afterwards, and the faults that are left.

    Raises:
        CommandError: the source does not give the shards any more, or other versions of libraries would give
            other bytes, or another process writes to the folder.
        ManifestError: there is no shard set, or its manifest cannot be read.
        SourceError: the source cannot be read.
    """
    root = os.fspath(root)
    if is_url(root):
        raise CommandError(f"--repair works on local folders, received {root}; copy the shard set, repair, copy back")
    shard_set = read_manifest(root)
    with locked(root, log):
        faults = list(find_faults(shard_set, splits=splits, deep=deep, workers=workers))
        for fault in faults:
            log(fault.text)
        broken = sorted({(fault.split, fault.number) for fault in faults if fault.kind == TAR})
        # A shard that is not listed can be one that a stale manifest does not know: the source tells.
        doubtful = {fault.split for fault in faults if fault.kind == UNLISTED and fault.split}
        for name in sorted(doubtful.union(split for split, _ in broken)):
            numbers = [number for split, number in broken if split == name]
            shard_set = _repair_split(shard_set, name, numbers, open_source, log)
        for fault in faults:
            if fault.kind == INDEX and (fault.split, fault.number) not in broken:
                _rewrite_index(shard_set, shard_set.splits[fault.split].shards[fault.number], log)
        if broken or doubtful or any(fault.kind == SIDECAR for fault in faults):
            _rewrite_changed(root, sidecar_files(shard_set), log)
        left = list(find_faults(shard_set, splits=splits, deep=deep, workers=workers)) if faults else []
        return shard_set, left


def _repair_split(
    shard_set: ShardSet,
    name: str,
    numbers: Sequence[int],
    open_source: Callable[[str], Mapping[str, Source]],
    log: Callable[[str], None],
) -> ShardSet:
    split = shard_set.splits[name]
    source, options, plan, label_map = _plan_again(shard_set, split, open_source)
    if len(plan.ranges) != len(split.shards):
        numbers = range(len(plan.ranges))  # the manifest is wrong about all of it
    work = join(shard_set.root, WORK_NAME)
    storage.remove_folder(work)
    storage.make_folder(work)
    try:
        made = {}
        for number in numbers:
            log(f"{shard_name(name, number)}: making it again")
            task = plan.task(number, source, work, label_map, options.images, skip_damaged=True, arrays=split.arrays)
            made[number] = write_shard(task)
        listed = {shard.file: shard for shard in split.shards}
        for written in made.values():
            if written.shard != listed.get(written.shard.file):
                _check_manifest_is_wrong(shard_set.root, split, written)
        for written in made.values():
            _put_in_place(work, shard_set.root, written.shard, log)
    finally:
        storage.remove_folder(work)
    shards = tuple(made[number].shard if number in made else split.shards[number] for number in range(len(plan.ranges)))
    if shards == split.shards:
        return shard_set
    mended = dataclasses.replace(split, shards=shards, samples=sum(shard.samples for shard in shards))
    shard_set = dataclasses.replace(shard_set, splits={**shard_set.splits, name: mended})
    write_manifest(shard_set)
    log(f"{MANIFEST_NAME}: mended, it did not agree with the source and the tars")
    return shard_set


def _check_manifest_is_wrong(root: str, split: Split, written: WrittenShard) -> None:
    # A shard came out other than it is listed. That is the manifest's fault only if the tar there agrees.
    shard = written.shard
    if split.written_with != library_versions():
        raise CommandError(
            f"{shard.file} comes out with other bytes: the shards were written with {split.written_with}, and "
            f"here are {library_versions()}. Install those versions, or make the shards again"
        )
    path = join(root, shard.file)
    if storage.exists(path) and sha256_of(path) == shard.sha256:
        return
    reason = f"; {written.skipped[0][1]}" if written.skipped else ""
    raise CommandError(
        f"{shard.file} comes out neither as {MANIFEST_NAME} lists it nor as it lies there, so nothing was changed: an "
        f"image of the source has changed or cannot be read{reason}"
    )


def _put_in_place(work: str, root: str, shard: Shard, log: Callable[[str], None]) -> None:
    for name in (shard.file, shard.index):
        new, old = join(work, name), join(root, name)
        if not storage.exists(old) or sha256_of(old) != sha256_of(new):
            os.replace(new, old)
            log(f"{name}: written again")


def _plan_again(
    shard_set: ShardSet, split: Split, open_source: Callable[[str], Mapping[str, Source]]
) -> tuple[Source, ShardOptions, SplitPlan, object]:
    if split.options.get("in_place") or "source" not in split.options:
        raise CommandError(
            f"split {split.name!r} was indexed in place, so there is nothing to make its tars from again; "
            "copy the broken ones from where they came"
        )
    kind = split.options["source"]
    options = ShardOptions.from_dict(split.options)
    sources = open_source(options.split)
    received = next(iter(sources.values())).name
    if received != kind:
        raise CommandError(f"split {split.name!r} was made with --source={kind}, received --source={received}")
    if options.split not in sources:
        raise CommandError(f"split {split.name!r} is broken, and the flags name a source of {', '.join(sources)} only")
    source = sources[options.split]
    listing = source.scan()
    if listing.fingerprint != split.options.get("source_fingerprint"):
        raise CommandError(
            f"--input is not what split {split.name!r} was made of: other files, sizes or labels. "
            "Name the source of that split; --split repairs one split at a time"
        )
    _, label_map = known_classes(listing, shard_set)
    plans = {plan.split: plan for plan in plan_splits(listing, options)}
    if split.name not in plans:
        raise CommandError(f"{MANIFEST_NAME} is damaged: split {split.name!r} has the options of {options.split!r}")
    return source, options, plans[split.name], label_map


def _rewrite_index(shard_set: ShardSet, shard: Shard, log: Callable[[str], None]) -> None:
    samples, _ = read_samples(join(shard_set.root, shard.file))
    storage.write_atomically(join(shard_set.root, shard.index), index_bytes(samples))
    log(f"{shard.index}: written again")


def _rewrite_changed(root: str, files: Mapping[str, bytes], log: Callable[[str], None]) -> None:
    for name, data in files.items():
        path = join(root, name)
        if not storage.exists(path) or read_location(Location(path)) != data:
            storage.write_atomically(path, data)
            log(f"{name}: written again")
