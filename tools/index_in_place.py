"""`make_shards --in_place`: an index and a manifest for tars in WebDataset format that stay as they are.

Every byte is read once, for the hashes, and every header is checked. A run that was killed begins anew.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Sequence

from keras_mae.commandline import CommandError
from pipeline import storage
from pipeline.array_files import MAX_HEADER_BYTES, ArrayKind, read_array_header
from pipeline.locations import SourceError, file_status, is_url, join, named_errors, open_file
from pipeline.manifest import (
    MANIFEST_NAME,
    Shard,
    ShardSet,
    Split,
    check_split_name,
    index_name,
    is_tar_name,
    load_manifest,
    write_manifest,
)
from pipeline.shard_index import (
    ARRAY_EXTENSION,
    IMAGE_EXTENSIONS,
    LABEL_EXTENSION,
    Member,
    index_bytes,
    parse_label,
    split_name,
)
from pipeline.sidecars import TIMM_NAME, sidecar_files, wids_name
from pipeline.sources.tar_files import find_tars
from pipeline.sources.webdataset import MAX_UNNAMED_CLASSES
from pipeline.tar_members import TarCompressed, TarDamage, tar_members
from pipeline.tar_samples import samples_of
from tools import worker_pool
from tools.foreign_files import refuse_foreign_indexes, refuse_foreign_sidecars
from tools.output_lock import locked
from tools.progress import Progress
from tools.shard_run import library_versions

_CHUNK = 1 << 22
_DOTTED_IMAGES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)
_TEMPORARY = re.compile(r"\.(.+)\.\d+\.tmp")


@dataclasses.dataclass(frozen=True)
class IndexedTar:
    """What there is to know about one tar.

    Attributes:
        shard: as the manifest lists it.
        num_classes: one more than its largest label; None: its samples have none.
        arrays: what its images are, where they are arrays; None: they are pictures.
    """

    shard: Shard
    num_classes: int | None
    arrays: ArrayKind | None


def index_in_place(
    input: str,
    split: str = "train",
    *,
    classes: Sequence[str] | None = None,
    workers: int | None = None,
    log: Callable[[str], None] = print,
) -> ShardSet:
    """Makes the folder of some tars a shard set; writes into it, but never a tar.

    Args:
        input: a folder of tars, or a pattern, as `pipeline.sources.WebDatasetSource` takes it; all in one folder.
        split: name of the split that they become.
        classes: class names, in the order of labels; None: labels serve as names.
        workers: processes; None: one for each core.
        log: is given the lines to tell the user.

    Returns:
        The shard set.

    Raises:
        CommandError: the tars lie in several folders, the folder has a split with this name or one of the tars, or
            holds other files with the names of an index or a sidecar.
        SourceError: a tar is damaged, or has a sample without an image or label, or both pictures and arrays.
        ManifestError: the folder holds a damaged shard set.
        OSError: the folder cannot be written.
    """
    workers = worker_pool.checked_workers(workers)
    check_split_name(split)
    files, _ = find_tars(os.fspath(input))
    root, names = _folder_of(files), [os.path.basename(file) for file in files]
    _check_names(names, classes)
    with locked(root, log):
        _remove_temporaries(root, {*map(index_name, names), MANIFEST_NAME, TIMM_NAME, wids_name(split)})
        existing = load_manifest(root) if storage.exists(join(root, MANIFEST_NAME)) else None
        if existing is not None:
            _check_is_new(existing, split, names)
        refuse_foreign_sidecars(root, [split])
        refuse_foreign_indexes(root, names)
        tars = _index_all(files, workers)
        classes = _agree_on_classes(tars, classes, existing)
        arrays = _agree_on_arrays(tars, existing)
        shards = tuple(tar.shard for tar in tars)
        made = Split(split, sum(s.samples for s in shards), shards, {"in_place": True}, library_versions(), arrays)
        shard_set = ShardSet(root, classes, {**(existing.splits if existing else {}), split: made})
        for name, data in sidecar_files(shard_set).items():
            storage.write_atomically(join(root, name), data)
        write_manifest(shard_set)
    log(f"indexed {made.samples} samples ({split}) in {len(shards)} tars, which stay as they are, in {root}")
    return shard_set


def _folder_of(files: Sequence[str]) -> str:
    folders = sorted({file.rpartition("/")[0] for file in files})
    if len(folders) > 1:
        raise CommandError(
            f"--in_place needs all tars in one folder, received {folders[0] or '.'} and {folders[1]}; move them "
            "together, or shard them anew without --in_place"
        )
    if is_url(folders[0]) and folders[0].startswith(("http://", "https://")):
        raise CommandError(f"--in_place writes beside the tars, and {folders[0]} cannot be written")
    return folders[0] or "."


def _check_names(names: Sequence[str], classes: Sequence[str] | None) -> None:
    for name in names:
        if not is_tar_name(name):
            raise CommandError(
                f"--in_place needs tars whose names end in .tar and begin with no dot, received {name!r}"
            )
    if classes is not None and len(set(classes)) < len(classes):
        twice = next(name for number, name in enumerate(classes) if name in classes[:number])
        raise CommandError(f"--classes name {twice!r} twice; expected different names")


def _check_is_new(existing: ShardSet, split: str, names: Sequence[str]) -> None:
    if split in existing.splits:
        raise CommandError(
            f"{existing.root} has a split {split!r} already; choose another --split, or move {MANIFEST_NAME} away"
        )
    split_of = {shard.file: other.name for other in existing.splits.values() for shard in other.shards}
    for name in names:
        if name in split_of:
            raise CommandError(
                f"{name} is in the split {split_of[name]!r} of {existing.root} already; name the other tars, "
                f"for example --input={join(existing.root, split)}-*.tar"
            )


def _remove_temporaries(root: str, names: set[str]) -> None:
    # Those of a run that was killed; the caller holds the lock.
    for name in storage.list_names(root):
        temporary = _TEMPORARY.fullmatch(name)
        if temporary and temporary[1] in names:
            storage.remove(join(root, name))


def _index_all(files: Sequence[str], workers: int) -> list[IndexedTar]:
    progress = Progress(len(files), sum(file_status(file).size for file in files), unit="tars")
    done = {}
    try:
        for tar in worker_pool.run_tasks(index_tar, files, workers):
            done[tar.shard.file] = tar
            progress.add(1, tar.shard.bytes)
    finally:
        progress.close()
    return [done[os.path.basename(file)] for file in files]


def index_tar(file: str) -> IndexedTar:
    """Reads a tar and writes its index beside it.

    Raises:
        SourceError: it is damaged, or has a sample without an image, or labels for some of its samples, or images of
            different kinds.
    """
    name = os.path.basename(file)
    size = file_status(file).size
    rows, labels, arrays = [], [], []
    with open_file(file) as opened, named_errors(file):
        try:
            for sample in samples_of(tar_members(opened, size)):
                rows.append(_check_row(file, sample.key, [member for _, member in sample.members]))
        except TarCompressed as error:
            raise SourceError(f"{file} {error}") from None
        except TarDamage as damage:
            raise SourceError(f"{file} {damage}. Copy the tar again, or make it again") from None
        for row in rows:
            labels.append(_read_label(file, opened, row))
            arrays.append(_read_arrays(file, opened, row))
            if arrays[-1] != arrays[0]:
                raise SourceError(
                    f"{file}: the image of sample {split_name(row[0].name)[0]!r} is {_described(arrays[-1])}, and that "
                    f"of the first sample {_described(arrays[0])}; a shard set holds images of one kind"
                )
        opened.seek(0)
        digest = hashlib.sha256()
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    if not rows:
        raise SourceError(f"{file} holds no samples; expected files such as 0001.jpg and 0001.cls")
    if None in labels and any(label is not None for label in labels):
        key = split_name(rows[labels.index(None)][0].name)[0]
        raise SourceError(f"{file} has labels for some of its samples only: {key!r} has none")
    storage.write_atomically(os.path.join(os.path.dirname(file), index_name(name)), index_bytes(rows))
    num_classes = None if labels[0] is None else max(labels) + 1
    return IndexedTar(Shard(name, size, digest.hexdigest(), len(rows), index_name(name)), num_classes, arrays[0])


def _check_row(file: str, key: str, members: Sequence) -> list[Member]:
    row = [Member(split_name(member.name)[1], member.offset, member.size, member.name) for member in members]
    extensions = [member.extension.lower() for member in row]
    if len(set(extensions)) < len(extensions):
        raise SourceError(
            f"{file}: sample {key!r} has two files of one kind: it has {', '.join(extensions)}; "
            "expected each extension once, and keys that differ"
        )
    if not set(extensions) & set(IMAGE_EXTENSIONS):
        if dotted := [member.name for member in row if member.extension.lower().endswith(_DOTTED_IMAGES)]:
            raise SourceError(
                f"{file}: sample {key!r} has no image called {key}.jpg or the like, but {', '.join(dotted[:3])}: "
                "keys end at the first dot of a name, and images with further dots cannot be indexed. Shard it anew "
                "without --in_place, or rename them if a sample has several"
            )
        raise SourceError(
            f"{file}: sample {key!r} has no image: it has {', '.join(extensions)}; "
            f"expected one of {', '.join(IMAGE_EXTENSIONS)}"
        )
    return row


def _read_arrays(file: str, opened, row: Sequence[Member]) -> ArrayKind | None:
    by_extension = {member.extension.lower(): member for member in row}
    extension = next(extension for extension in IMAGE_EXTENSIONS if extension in by_extension)
    if extension != ARRAY_EXTENSION:
        return None
    member = by_extension[extension]
    opened.seek(member.offset)
    try:
        return read_array_header(opened.read(min(member.size, 16 + MAX_HEADER_BYTES)), size=member.size).kind
    except ValueError as error:
        raise SourceError(f"{file}: {member.name!r} cannot be read: {error}") from None


def _described(arrays: ArrayKind | None) -> str:
    return "a picture" if arrays is None else f"an array, {arrays}"


def _agree_on_arrays(tars: Sequence[IndexedTar], existing: ShardSet | None) -> ArrayKind | None:
    arrays = tars[0].arrays
    for tar in tars:
        if tar.arrays != arrays:
            raise SourceError(
                f"an image of {tar.shard.file} is {_described(tar.arrays)}, and one of {tars[0].shard.file} is "
                f"{_described(arrays)}; index them as shard sets of their own, in two folders"
            )
    for split in existing.splits.values() if existing is not None else ():
        if split.arrays != arrays:
            raise CommandError(
                f"an image of the tars is {_described(arrays)}, and one of split {split.name!r} of {existing.root} is "
                f"{_described(split.arrays)}; a shard set holds images of one kind"
            )
    return arrays


def _read_label(file: str, opened, row: Sequence[Member]) -> int | None:
    for member in row:
        if member.extension.lower() == LABEL_EXTENSION:
            opened.seek(member.offset)
            text = opened.read(member.size)
            label = parse_label(text)
            if label is None:
                shown = text.strip()[:40].decode(errors="replace")
                raise SourceError(f"{file}: {member.name!r} holds {shown!r}; expected a label, a number from 0 on")
            return label
    return None


def _agree_on_classes(
    tars: Sequence[IndexedTar], classes: Sequence[str] | None, existing: ShardSet | None
) -> tuple[str, ...] | None:
    labelled = {tar.num_classes is not None for tar in tars}
    if len(labelled) > 1:
        without = next(tar.shard.file for tar in tars if tar.num_classes is None)
        raise SourceError(f"{without} has no labels, and other tars have; index them as splits of two folders")
    if not labelled.pop():
        if classes or (existing is not None and existing.classes is not None):
            raise CommandError("the tars have no labels (cls), so they cannot have classes")
        return None
    if existing is not None and existing.splits and existing.classes is None:
        raise CommandError(f"the tars have labels (cls), and the splits of {existing.root} have no classes")
    needed = max(tar.num_classes for tar in tars)
    if classes is None and existing is not None:
        classes = existing.classes
    if classes is None:
        if needed > MAX_UNNAMED_CLASSES:
            file = next(tar.shard.file for tar in tars if tar.num_classes == needed)
            raise SourceError(
                f"{file} has the label {needed - 1}; without --classes, expected less than {MAX_UNNAMED_CLASSES}"
            )
        return tuple(str(label) for label in range(needed))
    if needed > len(classes) or (existing is not None and existing.splits and tuple(classes) != existing.classes):
        raise CommandError(
            f"the tars have labels up to {needed - 1}, and there are {len(classes)} classes"
            if needed > len(classes)
            else f"--classes differ from those of {existing.root}; all splits share one list"
        )
    return tuple(classes)
