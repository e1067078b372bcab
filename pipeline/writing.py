"""Samples -> tars in WebDataset format, with the same bytes whoever writes them.

Which sample goes into which shard is decided beforehand from file sizes, so that processes write whole shards
independently. A tar holds no time, owner, host or path of the machine: the same images in the same order give
the same bytes. A sample is two or three members that share a key, its number in the split:

    00000041.cls     the label, an ASCII integer, where classes are known
    00000041.jpg     the image as it was found; the extension follows its contents: jpg, png or webp
    00000041.json    {"source": "cat/41.JPEG"}

sorted by extension, as webdataset's own writer does. This module imports no TensorFlow.
"""

import hashlib
import io
import json
import os
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from pipeline.atomic import open_atomically
from pipeline.manifest import LABEL_EXTENSION, Member, Shard, write_index
from pipeline.sources import Item, Source, SourceError

# MPO: a JPEG followed by further JPEGs, as phones and stereo cameras write it; decoders show the first.
EXTENSION_OF_FORMAT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
KEY_DIGITS = 8
MAX_SAMPLES = 10**KEY_DIGITS


def shard_name(split: str, number: int) -> str:
    """Name of the tar number `number` of a split; its index has `.idx` in place of `.tar`."""
    return f"{split}-{number:06d}.tar"


def index_name(tar_name: str) -> str:
    """Name of the index file that belongs to a tar."""
    return str(Path(tar_name).with_suffix(".idx"))


def image_extension(data: bytes) -> str:
    """The extension that an encoded image is stored under: jpg, png or webp, by its header.

    Only the header is read; pixels are not decoded.

    Raises:
        ValueError: `data` is empty, no image, or an image of another format.
    """
    if not data:
        raise ValueError("it is empty")
    try:
        with warnings.catch_warnings():
            # Nothing is decoded here, so a large image is no danger.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                found = image.format
                width, height = image.size
    except UnidentifiedImageError:
        raise ValueError("it is not an image") from None
    except Exception as error:  # Pillow's plugins raise many kinds on damaged headers
        raise ValueError(f"its header is damaged ({error})") from None
    if found not in EXTENSION_OF_FORMAT:
        raise ValueError(f"it is a {found} image")
    if width < 1 or height < 1:
        raise ValueError(f"its header says {width}x{height} pixels")
    return EXTENSION_OF_FORMAT[found]


def assign_to_shards(items: Sequence[Item], target_bytes: int) -> list[range]:
    """Cuts a sequence of samples into shards, in order, from sizes alone.

    Args:
        items: samples in the order in which they are written.
        target_bytes: no tar is larger, except one that holds a single sample.

    Returns:
        For each shard the range of its samples' numbers; every range holds at least one.
    """
    shards = []
    start = size = 0
    for number, item in enumerate(items):
        sample = _sample_bytes(item)
        if number > start and _tar_bytes(size + sample) > target_bytes:
            shards.append(range(start, number))
            start, size = number, 0
        size += sample
    return [*shards, range(start, len(items))] if items else []


def _sample_bytes(item: Item) -> int:
    # Each member is a header of one block and its data in whole blocks.
    sizes = [item.size, len(_json_member(item)), *([] if item.label is None else [len(_label_member(item))])]
    return sum(tarfile.BLOCKSIZE + _padded(size, tarfile.BLOCKSIZE) for size in sizes)


def _tar_bytes(members: int) -> int:
    # A tar ends with two empty blocks, and is filled up to whole records.
    return _padded(members + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE)


def _padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _label_member(item: Item) -> bytes:
    return str(item.label).encode()


def _json_member(item: Item) -> bytes:
    return json.dumps({"source": item.path}).encode()


def write_shard(
    folder: str | os.PathLike,
    split: str,
    number: int,
    first_sample: int,
    items: Sequence[Item],
    source: Source,
) -> Shard:
    """Writes one tar and its index; each appears under its name only when it is whole.

    Args:
        folder: folder of the shard set; must exist.
        split: name of the split.
        number: number of the shard in its split.
        first_sample: number in the split of the first of `items`.
        items: the shard's samples.
        source: where their bytes are.

    Returns:
        The shard as the manifest lists it.

    Raises:
        SourceError: an image cannot be read or is not an image; the message names it.
        OSError: the folder cannot be written, or the disk is full.
    """
    name = shard_name(split, number)
    with open_atomically(Path(folder, name)) as file:
        tar = _TarWriter(file)
        rows = [_write_sample(tar, f"{first_sample + i:0{KEY_DIGITS}d}", item, source) for i, item in enumerate(items)]
        tar.finish()
    write_index(Path(folder, index_name(name)), rows)
    return Shard(name, tar.size, tar.digest.hexdigest(), len(items), index_name(name))


def _write_sample(tar: "_TarWriter", key: str, item: Item, source: Source) -> list[Member]:
    data = source.read(item)
    try:
        extension = image_extension(data)
    except ValueError as error:
        raise SourceError(
            f"{item.path!r} cannot be used: {error}; expected a JPEG, PNG or WebP image. Replace or delete it"
        ) from None
    members = {extension: data, "json": _json_member(item)}
    if item.label is not None:
        members[LABEL_EXTENSION] = _label_member(item)
    return [tar.add(key, extension, members[extension]) for extension in sorted(members)]


class _TarWriter:
    # A USTAR file written front to back, that knows its size and hash at every moment.

    def __init__(self, file: BinaryIO):
        self.file = file
        self.size = 0
        self.digest = hashlib.sha256()

    def add(self, key: str, extension: str, data: bytes) -> Member:
        header = tarfile.TarInfo(f"{key}.{extension}")  # time 0, owner 0, no names
        header.size = len(data)
        header.mode = 0o444
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self.size
        self._write(data)
        self._fill(tarfile.BLOCKSIZE)
        return Member(extension, offset, len(data), header.name)

    def finish(self) -> None:
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._fill(tarfile.RECORDSIZE)

    def _fill(self, unit: int) -> None:
        self._write(bytes(_padded(self.size, unit) - self.size))

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)
