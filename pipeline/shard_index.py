"""The index file beside each tar: where every member of every sample lies.

It is DALI's format, so that it serves DALI and this project alike:

    v1.2 NUM_SAMPLES
    cls 512 1 00000000.cls jpg 1536 117003 00000000.jpg json 119296 31 00000000.json
    ...

that is, one line a sample and four fields a member: extension, byte offset of the data in the tar, size in
bytes, member name. Blanks, line ends and % in a name are written as %20, %0A, %25 and so on. The image of a
sample is the first there is of `IMAGE_EXTENSIONS`; a `png` beside a `jpg` is something else, a label map for
example, and so is a `npy` beside a picture. This module imports no TensorFlow.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.locations import Location, SourceError, read_location
from pipeline.manifest import ManifestError
from pipeline.manifest import index_name as index_name  # beside what else belongs to an index

INDEX_VERSION = "v1.2"
PICTURE_EXTENSIONS = ("jpg", "jpeg", "webp", "png")
ARRAY_EXTENSION = "npy"
IMAGE_EXTENSIONS = (*PICTURE_EXTENSIONS, ARRAY_EXTENSION)
LABEL_EXTENSION = "cls"
_UNSAFE = re.compile(r"[%\s]")


class Member(NamedTuple):
    """One file of a sample in a tar: what follows the name's first dot, where its bytes are, and its name."""

    extension: str
    offset: int
    size: int
    name: str


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """Where each sample of one shard lies in its tar, in tar order.

    Attributes:
        keys: per sample, the common name of its members.
        extensions: per sample, the extension of its image, in lower case.
        image_offset: int64 (samples,): first byte of the image in the tar.
        image_size: int64 (samples,): bytes of the image.
        label_offset: int64 (samples,): first byte of the label, an ASCII integer; 0 where there is none.
        label_size: int64 (samples,): bytes of the label; 0 where there is none.
    """

    keys: tuple[str, ...]
    extensions: tuple[str, ...]
    image_offset: np.ndarray
    image_size: np.ndarray
    label_offset: np.ndarray
    label_size: np.ndarray


def parse_label(text: bytes) -> int | None:
    """The label that a file holds: an ASCII integer from 0 on, in white space or not; None where it is none."""
    text = text.strip()
    return int(text) if text.isdigit() and len(text) < 10 else None


def split_name(name: str) -> tuple[str, str]:
    """The key and the extension of a member's name, cut at the first dot of its last part, as webdataset does."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return f"{folder}{slash}{key}", extension


def index_text(rows: Iterable[Sequence[Member]]) -> str:
    """The index file of a shard as text.

    Args:
        rows: per sample, in tar order, its members in tar order.
    """
    lines = [" ".join(f"{_quoted(m.extension)} {m.offset} {m.size} {_quoted(m.name)}" for m in row) for row in rows]
    return "\n".join([f"{INDEX_VERSION} {len(lines)}", *lines, ""])


def _quoted(name: str) -> str:
    if not _UNSAFE.search(name):
        return name
    return _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found.group().encode()), name)


def index_bytes(rows: Iterable[Sequence[Member]]) -> bytes:
    """The index file of a shard; names that are no valid text keep their bytes."""
    return index_text(rows).encode(errors="surrogateescape")


def read_index(path: str | os.PathLike, expected_samples: int, *, tar_bytes: int | None = None) -> ShardIndex:
    """Reads the index of a shard.

    Args:
        path: index file, or its URL.
        expected_samples: the number of samples that the manifest gives the shard.
        tar_bytes: size of the tar, in which all members must lie; None: they are not compared with it.

    Raises:
        ManifestError: the file is missing, damaged, holds another number of samples, or points outside the tar.
    """
    lines = _read_lines(path, expected_samples)
    # All members of all samples in flat columns: a loop over samples would take 10 times as long.
    counts = np.array([line.count(" ") + 1 for line in lines], np.int64)  # (samples,), fields
    fields = " ".join(lines).split(" ") if lines else []
    offsets, sizes = _integers(fields[1::4]), _integers(fields[2::4])  # (members,)
    if np.any(counts % 4) or offsets is None or sizes is None:
        raise ManifestError(f"{path} is damaged: expected 'extension offset size name' for each member of a sample")
    if tar_bytes is not None and np.any(sizes > tar_bytes - offsets):
        raise ManifestError(f"{path} is damaged: it points outside its tar, which has {tar_bytes} bytes")
    extensions, names = fields[0::4], fields[3::4]
    sample_of_member = np.repeat(np.arange(len(lines)), counts // 4)
    first_member = np.searchsorted(sample_of_member, np.arange(len(lines)))
    keys = tuple(names[member][: -len(extensions[member]) - 1] for member in first_member)
    for sample, extension, name in zip(sample_of_member.tolist(), extensions, names, strict=True):
        if name != f"{keys[sample]}.{extension}":
            raise ManifestError(
                f"{path}: sample {sample} should have members '{keys[sample]}.EXTENSION', received {name!r}"
            )
    image = _image_members(extensions, sample_of_member, len(lines))
    is_label = np.array([extension.lower() == LABEL_EXTENSION for extension in extensions], bool)
    num_labels = np.bincount(sample_of_member[is_label], minlength=len(lines))
    for number in np.flatnonzero((image < 0) | (num_labels > 1))[:1]:
        raise ManifestError(
            f"{path}: sample {number} needs an image and at most one label, received {lines[number][:200]!r}"
        )
    label_offset, label_size = np.zeros((2, len(lines)), np.int64)
    label_offset[sample_of_member[is_label]] = offsets[is_label]
    label_size[sample_of_member[is_label]] = sizes[is_label]
    image_extensions = tuple(extensions[member].lower() for member in image)
    return ShardIndex(keys, image_extensions, offsets[image], sizes[image], label_offset, label_size)


def _image_members(extensions: list[str], sample_of_member: np.ndarray, num_samples: int) -> np.ndarray:
    # (samples,): the member that is the image, -1 where there is none.
    rank_of = {extension: rank for rank, extension in enumerate(IMAGE_EXTENSIONS)}
    ranks = np.array([rank_of.get(extension.lower(), -1) for extension in extensions], np.int64)
    image = np.full(num_samples, -1, np.int64)
    for rank in reversed(range(len(IMAGE_EXTENSIONS))):
        members = np.flatnonzero(ranks == rank)
        image[sample_of_member[members]] = members
    return image


def _read_lines(path: str | os.PathLike, expected_samples: int) -> list[str]:
    try:
        text = read_location(Location(os.fspath(path))).decode(errors="surrogateescape")
    except SourceError as error:
        raise ManifestError(f"{error}: expected the index of a shard") from None
    lines = text.split("\n")
    expected = f"{INDEX_VERSION} {expected_samples}"
    if lines[0] != expected:
        raise ManifestError(f"{path}: the first line should be {expected!r}, received {lines[0][:80]!r}")
    if lines[-1] != "" or len(lines) != expected_samples + 2:
        received = len(lines) - 2 + (lines[-1] != "")
        raise ManifestError(f"{path} was cut or edited: expected {expected_samples} samples, received {received}")
    return lines[1:-1]


def _integers(texts: list[str]) -> np.ndarray | None:
    # None where one is no number of bytes.
    try:
        numbers = np.array([int(text) for text in texts], np.int64)
    except (ValueError, OverflowError):
        return None
    return None if np.any(numbers < 0) else numbers
