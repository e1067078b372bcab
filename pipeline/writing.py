"""Samples -> tars in WebDataset format, with the same bytes whoever writes them.

Which sample goes into which shard is decided beforehand (`splitting`), so that processes write whole shards
independently. A tar holds no time, owner, host or path of the machine: the same samples in the same order give
the same bytes. A sample is a few members that share a key, its number in the split:

    00000041.cls     the label, an ASCII integer, where classes are known
    00000041.jpg     the image (`image_files` says when it is converted); jpg, png, webp or npy by its contents
    00000041.json    {"source": "cat/41.JPEG"}, and further columns of the source
    00000041.seg.png further members that the source has

sorted by extension, as webdataset's own writer does. Numbers of samples that were skipped stay unused. This
module imports no TensorFlow.
"""

import collections
import dataclasses
import hashlib
import itertools
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from pipeline import storage
from pipeline.array_files import ArrayKind, array_kind
from pipeline.image_files import NOTES, ImageOptions, prepare_image
from pipeline.locations import Location, SourceError, SourceUnavailable, is_url, is_web, join, read_location
from pipeline.manifest import Shard
from pipeline.shard_index import IMAGE_EXTENSIONS, LABEL_EXTENSION, Member, index_bytes, index_name
from pipeline.sources.base import Item
from pipeline.tar_members import BLOCK

KEY_DIGITS = 8
MAX_SAMPLES = 10**KEY_DIGITS
# A server answers many requests at once as fast as one.
READS_IN_FLIGHT = 16
# The others say what was asked for, of nearly all samples.
LISTED_NOTES = NOTES.keys() - {"resized", "reencoded", "kept_smaller"}
# Some addresses of a long list always belong to servers that are gone; so many in a row mean that the network is.
MAX_SILENT = 100
MAX_LISTED = 1000  # names of each kind in a shard
_WRITE_BYTES = 1 << 20
_ZEROS = bytes(BLOCK)


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """Everything that is needed to write one shard, on any process or machine that sees the same storage.

    Attributes:
        root: folder of the shard set, or its URL; must exist.
        split: name of the split.
        number: number of the shard in its split.
        first_sample: number in the split of the first of `items`.
        items: the shard's samples, in order.
        image_options: how images are checked and stored.
        skip_damaged: whether a sample that cannot be used is left out and listed, instead of ending the work.
        arrays: what the images must be, where they are arrays; None: pictures.
    """

    root: str
    split: str
    number: int
    first_sample: int
    items: Sequence[Item]
    image_options: ImageOptions = ImageOptions()
    skip_damaged: bool = False
    arrays: ArrayKind | None = None


@dataclasses.dataclass(frozen=True)
class WrittenShard:
    """What came of a task.

    Attributes:
        split: name of the split.
        number: number of the shard in its split.
        shard: as the manifest lists it.
        notes: for each kind of note (`image_files.NOTES`), how many samples have it.
        noted: for those of `LISTED_NOTES`, the names of the first `MAX_LISTED` samples.
        skipped: (name, reason) of each sample that was left out.
    """

    split: str
    number: int
    shard: Shard
    notes: dict[str, int]
    noted: dict[str, list[str]]
    skipped: list[tuple[str, str]]


def shard_name(split: str, number: int) -> str:
    """Name of the tar number `number` of a split; its index has `.idx` in place of `.tar`."""
    return f"{split}-{number:06d}.tar"


def write_shard(task: ShardTask) -> WrittenShard:
    """Writes one tar and its index; each appears under its name only when it is whole.

    Raises:
        SourceError: a sample cannot be read or is not an image; the message names it.
        SourceUnavailable: a sample cannot be read although it may be whole; raised even if `skip_damaged`, of web
            servers after `MAX_SILENT` in a row.
        OSError: the folder cannot be written, or the disk is full.
    """
    name = shard_name(task.split, task.number)
    notes, noted, skipped, rows = collections.Counter(), collections.defaultdict(list), [], []
    silent = 0  # images in a row that no storage gave
    with storage.open_atomically(join(task.root, name), large=True) as file:
        tar = _TarWriter(file)
        keys = (f"{task.first_sample + i:0{KEY_DIGITS}d}" for i in range(len(task.items)))
        for key, item, read in zip(keys, task.items, _read_items(task.items), strict=True):
            try:
                members, found = _sample_members(item, read(), task.image_options, task.arrays)
            except SourceError as error:
                silent = silent + 1 if isinstance(error, SourceUnavailable) else 0
                if not task.skip_damaged or silent > (MAX_SILENT if is_web(item.image.file) else 0):
                    raise
                skipped.append((item.name, str(error)))
                continue
            silent = 0
            notes.update(found)
            for note in found:
                if note in LISTED_NOTES and len(noted[note]) < MAX_LISTED:
                    noted[note].append(item.name)
            rows.append([tar.add(key, extension, data) for extension, data in sorted(members.items())])
        tar.finish()
    storage.write_atomically(join(task.root, index_name(name)), index_bytes(rows))
    shard = Shard(name, tar.size, tar.digest.hexdigest(), len(rows), index_name(name))
    return WrittenShard(task.split, task.number, shard, dict(notes), dict(noted), skipped)


def _read_items(items: Sequence[Item]) -> Iterator:
    # For each item a function that returns the bytes of its image and further members, or raises.
    if not any(is_url(location.file) for item in items[:1] for location in _locations(item)):
        for item in items:
            yield lambda item=item: _read_item(item)
        return
    with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
        waiting = collections.deque()
        try:
            remaining = iter(items)
            waiting.extend(pool.submit(_read_item, item) for item in itertools.islice(remaining, READS_IN_FLIGHT))
            while waiting:
                yield waiting.popleft().result
                waiting.extend(pool.submit(_read_item, item) for item in itertools.islice(remaining, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def _locations(item: Item):
    return [item.image, *(location for _, location in item.members)]


def _read_item(item: Item) -> list[bytes]:
    return [_read_listed(location) for location in _locations(item)]


def _read_listed(location: Location) -> bytes:
    try:
        return read_location(location)
    except SourceError as error:
        # A local file was there, and of this size, when the samples were listed: if it is not now, then it is no
        # damaged image that may be skipped. Behind a URL nothing was looked at.
        if isinstance(error, SourceUnavailable) or is_url(location.file):
            raise
        if os.path.exists(location.file) and not os.access(location.file, os.R_OK):
            raise
        raise SourceUnavailable(f"{error}; the input changed while shards were made") from None


def _sample_members(
    item: Item, contents: list[bytes], image_options: ImageOptions, arrays: ArrayKind | None
) -> tuple[dict[str, bytes], Sequence[str]]:
    # The sample's files by extension, and what is to be noted about its image.
    try:
        image = prepare_image(contents[0], image_options, item.name)
        if (kind := array_kind(image.data)) != arrays:
            received = f"an array, {kind}" if kind else "a picture"
            expected = f"arrays, {arrays}" if arrays else "pictures (JPEG, PNG or WebP)"
            raise ValueError(f"it is {received}; the images of this shard set are {expected}")
    except ValueError as error:
        raise SourceError(f"{item.name!r} cannot be used: {error}") from None
    members = {image.extension: image.data, "json": item.json_member()}
    if item.label is not None:
        members[LABEL_EXTENSION] = str(item.label).encode()
    is_changed = "resized" in image.notes or (image_options.exif == "apply" and "exif_rotated" in image.notes)
    for (extension, _), data in zip(item.members, contents[1:], strict=True):
        if extension in members:
            raise SourceError(
                f"{item.name!r} has a further member {extension!r}, which is the name of its image, label or json; "
                f"give it another, such as 'seg.{extension}'"
            )
        if is_changed and extension.rpartition(".")[2] in IMAGE_EXTENSIONS:  # it shows the same pixels
            raise SourceError(
                f"{item.name!r} has a further member {extension!r} that would not fit its image any more; "
                "leave --resize_short_side and --exif=apply out for such samples"
            )
        members[extension] = data
    return members, image.notes


class _TarWriter:
    # A USTAR file written front to back in large pieces, that knows its size and hash.

    def __init__(self, file: BinaryIO):
        self.file = file
        self.size = 0
        self.digest = hashlib.sha256()
        self._pieces, self._pending = [], 0

    def add(self, key: str, extension: str, data: bytes) -> Member:
        name, size = f"{key}.{extension}", len(data)
        offset = self.size + BLOCK
        padding = -size % BLOCK
        self._pieces += (tar_header(name, size), data, _ZEROS[:padding])
        added = BLOCK + size + padding
        self.size += added
        self._pending += added
        if self._pending >= _WRITE_BYTES:
            self._flush()
        return Member(extension, offset, size, name)

    def finish(self) -> None:
        end = bytes(2 * BLOCK)
        end += bytes(-(self.size + len(end)) % tarfile.RECORDSIZE)
        self._pieces.append(end)
        self.size += len(end)
        self._flush()

    def _flush(self) -> None:
        data = b"".join(self._pieces)
        self._pieces, self._pending = [], 0
        self.digest.update(data)
        self.file.write(data)


def _header_of(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)  # time 0, owner 0, no names
    info.size = size
    info.mode = 0o444
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")


# Bytes of a USTAR header that differ between files: name 0-99, size 124-135, checksum 148-155; the checksum is a sum
# of all bytes in which its own eight count as blanks.
_EMPTY = _header_of("", 0)
_MODE_TO_SIZE, _TIME, _TYPE_TO_END = _EMPTY[100:124], _EMPTY[136:148], _EMPTY[156:]
_SUM_OF_REST = sum(_MODE_TO_SIZE) + sum(_TIME) + sum(_TYPE_TO_END) + 8 * ord(" ")


def tar_header(name: str, size: int) -> bytes:
    """The USTAR header of a file, equal to tarfile's and made in a tenth of its time for plain short names."""
    if len(name) > 100 or not name.isascii() or size >= 8**11:
        return _header_of(name, size)
    name_field, size_field = name.encode(), b"%011o\0" % size
    checksum = b"%06o\0 " % (_SUM_OF_REST + sum(name_field) + sum(size_field))
    return b"".join((name_field.ljust(100, b"\0"), _MODE_TO_SIZE, size_field, _TIME, checksum, _TYPE_TO_END))
