"""What is wrong with a shard set: every file of it compared with the manifest, each fault in one sentence."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Sequence

from pipeline import storage
from pipeline.array_files import ArrayKind, array_kind
from pipeline.image_files import ImageOptions, prepare_image
from pipeline.locations import Location, SourceError, file_status, join, named_errors, open_file, read_location
from pipeline.manifest import MANIFEST_NAME, Shard, ShardSet, file_faults
from pipeline.shard_index import IMAGE_EXTENSIONS, LABEL_EXTENSION, Member, index_bytes, parse_label, split_name
from pipeline.sidecars import sidecar_files
from pipeline.tar_members import TarDamage, tar_members
from pipeline.tar_samples import samples_of
from tools import worker_pool
from tools.progress import Progress

TAR, INDEX, SIDECAR, UNLISTED = "tar", "index", "sidecar", "unlisted"
_DECODE = ImageOptions(check="decode")
_UNFINISHED = re.compile(r"\.(.*\.unfinished|.*\.\d+\.tmp|make_shards\.repair)")
_SHARD_FILE = re.compile(r"(.+)-\d{6,}\.(tar|idx)")
_CHUNK = 1 << 22
_SHOWN = 100  # characters of a name


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        text: a sentence that begins with the file's name.
        kind: what has to be mended: the tar, its index, a sidecar, or a file that the manifest does not list.
        split: name of the split of the tar or index; of an unlisted file, the split that its name is of.
        number: number of the shard in the manifest's list.
    """

    text: str
    kind: str
    split: str | None = None
    number: int | None = None


@dataclasses.dataclass(frozen=True)
class ShardCheck:
    """A shard to be checked, for any process.

    Attributes:
        root: of the shard set.
        split: name of its split.
        number: its number in the manifest's list.
        shard: as the manifest lists it.
        num_classes: of the shard set; None where it has none.
        arrays: what the images are, where they are arrays; None: they are pictures.
        deep: whether every image is decoded.
    """

    root: str
    split: str
    number: int
    shard: Shard
    num_classes: int | None
    arrays: ArrayKind | None
    deep: bool


def find_faults(
    shard_set: ShardSet, *, splits: Sequence[str] | None = None, deep: bool = False, workers: int = 1
) -> Iterator[Fault]:
    """Compares every file of a shard set with its manifest; reads every byte.

    Args:
        shard_set: as `pipeline.manifest.read_manifest` gives it.
        splits: names of the splits to look at; None: all.
        deep: whether every image is decoded, too.
        workers: processes.

    Yields:
        The faults, those of a shard together, shards in the order in which they end.
    """
    chosen = [split for split in shard_set.splits.values() if splits is None or split.name in splits]
    num_classes = None if shard_set.classes is None else len(shard_set.classes)
    checks = [
        ShardCheck(shard_set.root, split.name, number, shard, num_classes, split.arrays, deep)
        for split in chosen
        for number, shard in enumerate(split.shards)
    ]
    progress = Progress(sum(c.shard.samples for c in checks), sum(c.shard.bytes for c in checks))
    try:
        for check, faults in worker_pool.run_tasks(check_shard, checks, workers):
            yield from faults
            progress.add(check.shard.samples, check.shard.bytes, {"faults": len(faults)})
    finally:
        progress.close()
    yield from _set_faults(shard_set)


def check_shard(check: ShardCheck) -> tuple[ShardCheck, list[Fault]]:
    """The faults of one shard, with the check that asked for them; a file that cannot be read is one."""
    shard, faults = check.shard, []
    try:
        with named_errors(join(check.root, shard.file)):
            for fault in _shard_faults(check):
                faults.append(fault)
    except SourceError as error:
        faults.append(_fault(check, TAR, f"{shard.file}: {error}"))
    return check, faults


def _shard_faults(check: ShardCheck) -> Iterator[Fault]:
    root, shard = check.root, check.shard
    sizes = storage.file_sizes(root, [shard.file, shard.index])
    for text in file_faults(shard, sizes):
        if text.startswith(shard.file):
            yield _fault(check, TAR, f"{text}{_place_of_damage(check)}" if shard.file in sizes else text)
            return
        yield _fault(check, INDEX, text)
    path = join(root, shard.file)
    found = sha256_of(path)
    if found != shard.sha256:
        text = f"{shard.file}: its contents have changed: sha256 is {found}, expected {shard.sha256}"
        yield _fault(check, TAR, f"{text}{_place_of_damage(check)}")
    samples, damage = read_samples(path)
    if damage and found == shard.sha256:
        yield _fault(check, TAR, f"{shard.file} {damage}")
    if len(samples) != shard.samples:
        yield _fault(check, TAR, f"{shard.file}: holds {len(samples)} samples, expected {shard.samples}")
    if shard.index in sizes:
        for text in _index_faults(join(root, shard.index), samples):
            yield _fault(check, INDEX, f"{shard.index}: {text}")
    for text in _sample_faults(check, samples):
        yield _fault(check, TAR, f"{shard.file}: sample {text}")


def _fault(check: ShardCheck, kind: str, text: str) -> Fault:
    return Fault(text, kind, check.split, check.number)


def _place_of_damage(check: ShardCheck) -> str:
    _, damage = read_samples(join(check.root, check.shard.file))
    return f"; it {damage}" if damage else ""


def sha256_of(path: str) -> str:
    """The sha256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_samples(path: str | os.PathLike) -> tuple[list[list[Member]], str]:
    """The members of each sample of a tar, in order, as its index lists them.

    Args:
        path: of the tar, or its URL.

    Returns:
        The samples up to the first damage, and what the damage is ("" if there is none).
    """
    path, members, damage = os.fspath(path), [], ""
    with open_file(path) as file:
        try:
            for member in tar_members(file, file_status(path).size):
                members.append(member)
        except TarDamage as error:
            damage = str(error)
    rows = [[member for _, member in sample.members] for sample in samples_of(members)]
    return [[Member(split_name(m.name)[1], m.offset, m.size, m.name) for m in row] for row in rows], damage


def _index_faults(path: str, samples: list[list[Member]]) -> Iterator[str]:
    try:
        found, expected = read_location(Location(path)).split(b"\n"), index_bytes(samples).split(b"\n")
    except SourceError as error:
        yield str(error)
        return
    if found == expected:
        return
    lines = zip(found, expected, strict=False)
    number, (received, wanted) = next(
        ((number, pair) for number, pair in enumerate(lines, 1) if pair[0] != pair[1]),
        (min(len(found), len(expected)), (b"the end of the file", b"further lines")),
    )
    received, wanted = (text[:80].decode(errors="backslashreplace") for text in (received, wanted))
    yield f"differs from the tar at line {number}: {received!r}, expected {wanted!r}"


def _sample_faults(check: ShardCheck, samples: list[list[Member]]) -> Iterator[str]:
    with open_file(join(check.root, check.shard.file)) as file:
        for members in samples:
            key = split_name(members[0].name)[0][:_SHOWN]
            by_extension = {member.extension.lower(): member for member in members}
            if len(by_extension) < len(members):
                yield f"{key} has two members of one name"
            image = next((by_extension[e] for e in IMAGE_EXTENSIONS if e in by_extension), None)
            label = by_extension.get(LABEL_EXTENSION)
            if image is None:
                yield f"{key} has no image"
            elif check.deep:
                try:
                    kind = array_kind(prepare_image(_read(file, image), _DECODE).data)
                except ValueError as error:
                    yield f"{key} has a damaged image: {error}"
                else:
                    if kind != check.arrays:
                        received, expected = kind or "a picture", check.arrays or "a picture"
                        yield f"{key} has an image of another kind: {received}, expected {expected}"
            if (label is None) != (check.num_classes is None):
                yield f"{key} has {'no label' if label is None else 'a label'}, unlike the manifest's classes"
            elif label is not None:
                text = _read(file, label)
                number = parse_label(text)
                if number is None or number >= check.num_classes:
                    yield f"{key} has label {text[:20]!r}, expected an integer from 0 to {check.num_classes - 1}"


def _read(file, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def _set_faults(shard_set: ShardSet) -> Iterator[Fault]:
    # Sidecars, and files that do not belong there.
    root = shard_set.root
    for name, expected in sidecar_files(shard_set).items():
        path = join(root, name)
        if not storage.exists(path):
            yield Fault(f"{name} is missing", SIDECAR)
            continue
        try:
            if read_location(Location(path)) != expected:
                yield Fault(f"{name}: differs from {MANIFEST_NAME}", SIDECAR)
        except SourceError as error:
            yield Fault(f"{name}: {error}", SIDECAR)
    listed = {
        name for split in shard_set.splits.values() for shard in split.shards for name in (shard.file, shard.index)
    }
    for name in storage.list_names(root):
        if name.endswith((".tar", ".idx")) and not name.startswith(".") and name not in listed:
            text = f"{name}: {MANIFEST_NAME} does not list it (an older or later manifest? a file from elsewhere?)"
            split = _SHARD_FILE.fullmatch(name)
            yield Fault(text, UNLISTED, split[1] if split and split[1] in shard_set.splits else None)
        elif _UNFINISHED.fullmatch(name):
            text = f"{name}: make_shards is at work, or was killed (run it again, or delete it)"
            yield Fault(text, UNLISTED)
