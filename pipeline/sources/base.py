"""What every kind of source has in common: its samples as columns, and one sample as an item.

A source can hold tens of millions of samples, so that `scan` keeps them in columns (16 to 100 bytes each), and
`items` builds the Python objects of one shard at a time. This module imports no TensorFlow.
"""

import array
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any, Protocol

import numpy as np

from pipeline.locations import Location
from pipeline.tar_members import BLOCK

UNKNOWN_SIZE = -1
# The name of a file in a tar has 100 bytes at most, and the key of its sample comes first.
MAX_EXTENSION_BYTES = 80


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


# For Python's JSON decoders. NaN and infinities are no JSON, and readers of the shards would stumble over them; 1e400
# is JSON, but becomes an infinity.
JSON_NUMBERS = {"parse_constant": lambda name: None, "parse_float": _finite}


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One sample of a source, not yet read.

    Attributes:
        name: what the sample is called in the source, a relative path for example; goes into `json`.
        label: position of its class in the source's classes; None where the source has none.
        image: where the encoded image is.
        members: further files of the sample, as (extension, location), such as ("png", a label map).
        columns: what `json` holds besides the name.
    """

    name: str
    label: int | None
    image: Location
    members: tuple[tuple[str, Location], ...] = ()
    columns: Mapping[str, Any] | None = None

    def json_member(self) -> bytes:
        """The contents of the sample's `json` file."""
        return json_member(self.name, self.columns)


def json_member(name: str, columns: Mapping[str, Any] | None = None) -> bytes:
    """The `json` file of a sample: {"source": its name in the source, and further columns}.

    A column that is called "source" too takes the place of the name.
    """
    if not columns:
        return f'{{"source": {encode_basestring_ascii(name)}}}'.encode()  # what the line below gives, ten times faster
    return json.dumps({"source": name, **columns}).encode()


@dataclasses.dataclass(frozen=True)
class Listing:
    """All samples of a source, in the source's order.

    Attributes:
        tar_bytes: int64 (samples,): what each takes in a tar if its image is kept (`sample_tar_bytes`);
            `UNKNOWN_SIZE` where that cannot be known before it is read.
        labels: int32 (samples,): positions in `classes`; None where the source has no classes.
        classes: class names, or None.
        fingerprint: sha256, hexadecimal, over names, sizes and labels: it changes when they do.
        stamp: sha256 over the files' times of change, too: it changes when a file is written again.
        ignored: names of files that were found and left out, sorted.
    """

    tar_bytes: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...] | None
    fingerprint: str
    stamp: str
    ignored: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tar_bytes)


class Source(Protocol):
    """What `tools.make_shards` asks of a source."""

    name: str

    def scan(self) -> Listing:
        """Lists the samples without reading their images.

        Raises:
            SourceError: there is nothing to read, or it is ambiguous or damaged.
        """

    def items(self, positions: Sequence[int]) -> list[Item]:
        """The samples at some positions of the listing that `scan` returned last."""


def sample_tar_bytes(image_size, json_size, labelled: bool, member_sizes: Sequence = ()):
    """Bytes that a sample takes in a tar: for each file a header, and its data in whole blocks.

    Sizes are integers, or arrays with one for each sample.
    """
    data = sum(_padded(size) for size in (image_size, json_size, *member_sizes))
    return data + (2 + len(member_sizes)) * BLOCK + (2 * BLOCK if labelled else 0)  # a label fits a block


def _padded(size):
    return -(-size // BLOCK) * BLOCK


def is_text(name: str) -> bool:
    """Whether a string can be written as UTF-8; JSON can hold halves of characters, such as "\\ud800"."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class PackedNames:
    """Many strings in one block of memory: 8 bytes each and their letters, instead of some 80."""

    def __init__(self, names: Iterable[str] = ()):
        self._text = bytearray()
        self._ends = array.array("q")
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        # Names of files need not be valid text.
        self._text += name.encode("utf-8", errors="surrogateescape")
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, position: int) -> str:
        start = self._ends[position - 1] if position else 0
        return self._text[start : self._ends[position]].decode("utf-8", errors="surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[position] for position in range(len(self)))


class Fingerprint:
    """Collects what decides the contents of a source into the two hashes of a `Listing`."""

    def __init__(self):
        self._contents, self._times = hashlib.sha256(), hashlib.sha256()

    def add(self, *values: object, modified: int = 0) -> None:
        """Adds values that identify a sample or a file, and its time of change in ns."""
        text = "\0".join(map(str, values)) + "\n"
        self._contents.update(text.encode(errors="surrogateescape"))
        if modified:
            self._times.update(modified.to_bytes(8, "little", signed=True))

    def contents(self) -> str:
        return self._contents.hexdigest()

    def stamp(self) -> str:
        return hashlib.sha256(self._contents.digest() + self._times.digest()).hexdigest()
