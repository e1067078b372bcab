"""Tars in WebDataset format as a source: files with a common key, next to each other in a tar, are a sample.

    a/000041.cls        the label, an ASCII integer, in all samples or in none
    a/000041.jpg        the image
    a/000041.json       becomes columns; NaN and infinities, which are no JSON, become null
    a/000041.seg.png    anything else is a further member of the sample

The key ("a/000041") ends at the first dot of a file's name, and what follows it is the extension, as webdataset
has it. Unlike webdataset, this reads tars strictly: one that is cut or damaged is an error. This module imports
no TensorFlow.
"""

import array
import bisect
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from pipeline.locations import Location, SourceError, file_status, named_errors, open_file, read_location
from pipeline.shard_index import IMAGE_EXTENSIONS, LABEL_EXTENSION
from pipeline.sources.base import (
    JSON_NUMBERS,
    MAX_EXTENSION_BYTES,
    Fingerprint,
    Item,
    Listing,
    PackedNames,
    json_member,
    sample_tar_bytes,
)
from pipeline.sources.tar_files import find_tars, tar_names
from pipeline.tar_members import TarCompressed, TarDamage, TarMember, tar_members
from pipeline.tar_samples import TarSample, image_extension, samples_of

COLUMNS_EXTENSION = "json"
# Without names, classes are counted from the labels; a larger one is no label but some other number.
MAX_UNNAMED_CLASSES = 1_000_000


class WebDatasetSource:
    """The samples of tars in WebDataset format, tar by tar in the order of their names.

    A sample's name is that of its tar and its key, such as "train-0001.tar/a/000041". Its image is the first of
    `IMAGE_EXTENSIONS` that it has.

    Args:
        input: a folder of tars, a tar, or several as "dir/train-*.tar" or "dir/train-{000..012}.tar"; paths or
            URLs.
        classes: class names, in the order of labels. None: labels serve as names.
    """

    name = "webdataset"

    def __init__(self, input: str | os.PathLike, classes: Sequence[str] | None = None):
        self.input = os.fspath(input)
        self.classes = None if classes is None else tuple(classes)

    def scan(self) -> Listing:
        """Lists the samples by reading all headers, labels and json; see `Source.scan`."""
        files, ignored = find_tars(self.input)
        self._samples, fingerprint = _Samples(files), Fingerprint()
        self._is_labelled = None
        for file, tar_name in zip(files, self._samples.tar_names, strict=True):
            status, others = file_status(file), []
            fingerprint.add(modified=status.modified)
            self._samples.begin_tar()
            with open_file(file) as opened, named_errors(file):
                for sample in samples_of(_strict_members(opened, status.size, file), others):
                    self._add(opened, sample, f"Sample {sample.key!r} in {file}", fingerprint)
            ignored += [f"{tar_name}/{name}" for name in others]
        if not len(self._samples):
            raise SourceError(
                f"{self.input} holds no samples: expected tars in WebDataset format, "
                f"received {len(files)} tars, with {len(ignored)} other files in and beside them"
            )
        labels = np.array(self._samples.labels, np.int32) if self._is_labelled else None
        return Listing(
            np.array(self._samples.tar_bytes, np.int64),
            labels,
            self._name_classes(labels),
            fingerprint.contents(),
            fingerprint.stamp(),
            tuple(sorted(ignored)),
        )

    def items(self, positions: Sequence[int]) -> list[Item]:
        """The samples at some positions, with what their json holds; see `Source.items`."""
        return [self._samples.item(position, bool(self._is_labelled)) for position in positions]

    def _add(self, file: BinaryIO, sample: TarSample, place: str, fingerprint: Fingerprint) -> None:
        members = dict(sample.members)
        if len(members) < len(sample.members):
            extensions = [extension for extension, _ in sample.members]
            twice = next(extension for extension in extensions if extensions.count(extension) > 1)
            raise SourceError(f"{place} has two files {twice!r}; expected each extension once, and keys that differ")
        if long := [extension for extension in members if len(os.fsencode(extension)) > MAX_EXTENSION_BYTES]:
            raise SourceError(
                f"{place} has the extension {long[0]!r}, which all begins at the first dot of a name; "
                f"expected at most {MAX_EXTENSION_BYTES} bytes"
            )
        image = image_extension(members, place)
        if image is None:
            self._refuse_without_image(place, sorted(members))
        label = self._read_label(file, members.pop(LABEL_EXTENSION, None), place)
        columns = None
        if COLUMNS_EXTENSION in members:
            columns = _parse_columns(_read(file, members[COLUMNS_EXTENSION]), place)
        order = [image, *sorted(members.keys() - {image})]
        places = [(extension, members[extension]) for extension in order]
        name = self._samples.add(sample.key, label, places, columns)
        fingerprint.add(name, label, *(f"{extension}:{member.size}" for extension, member in places))

    def _refuse_without_image(self, place: str, extensions: list[str]) -> None:
        kinds = ", ".join(IMAGE_EXTENSIONS)
        if not len(self._samples):
            raise SourceError(
                f"{self.input} seems to hold no images: its first sample has the files {', '.join(extensions)}, "
                f"and none of {kinds} ({place})"
            )
        raise SourceError(
            f"{place} has no image: it has {', '.join(extensions)}; expected one of {kinds}. "
            "The files of a sample must lie next to each other"
        )

    def _read_label(self, file: BinaryIO, member: TarMember | None, place: str) -> int:
        # -1 where samples have no labels.
        is_labelled = member is not None
        if self._is_labelled is None:
            self._is_labelled = is_labelled
        if self._is_labelled != is_labelled:
            has, have = ("a label", "none") if is_labelled else ("no label", "one")
            raise SourceError(
                f"{place} has {has} ({LABEL_EXTENSION}), and the samples before it have {have}; label all or none"
            )
        if self.classes is not None and not is_labelled:
            raise SourceError(f"{place} has no label ({LABEL_EXTENSION}), but --classes was given; leave it out")
        if not is_labelled:
            return -1
        text = _read(file, member).strip()
        if not (text.isdigit() and len(text) < 10):
            shown = text[:40].decode(errors="replace")
            raise SourceError(f"{place} has the label {shown!r}; expected a number of a class, from 0 on")
        limit = MAX_UNNAMED_CLASSES if self.classes is None else len(self.classes)
        if int(text) >= limit:
            raise SourceError(f"{place} has the label {int(text)}; expected less than {limit}, the number of classes")
        return int(text)

    def _name_classes(self, labels: np.ndarray | None) -> tuple[str, ...] | None:
        if labels is None or self.classes is not None:
            return self.classes
        return tuple(str(number) for number in range(int(labels.max()) + 1))


def _strict_members(file: BinaryIO, size: int, name: str) -> Iterator[TarMember]:
    try:
        yield from tar_members(file, size)
    except TarCompressed as error:
        raise SourceError(f"{name} {error}") from None
    except TarDamage as error:
        raise SourceError(f"{name} {error}. Copy the tar again, or make it again") from None


def _read(file: BinaryIO, member: TarMember) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def _parse_columns(data: bytes, place: str) -> dict[str, Any]:
    try:
        value = json.loads(data, **JSON_NUMBERS)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place} has a json file that is no JSON: {error}") from None
    return value if isinstance(value, dict) else {COLUMNS_EXTENSION: value}


class _Samples:
    # All samples in columns: some 40 bytes each with its key, and 20 for each file. A label is no file.

    def __init__(self, files: Sequence[str]):
        self.files, self.tar_names = files, tar_names(files)
        self.keys, self.labels, self.tar_bytes = PackedNames(), array.array("i"), array.array("q")
        self._tar_starts: list[int] = []
        self._starts = array.array("q", [0])  # per sample where its files begin, of which the first is the image
        self._offsets, self._sizes, self._extensions = array.array("q"), array.array("q"), array.array("i")
        self._number_of_extension: dict[str, int] = {}
        self._extension_names: list[str] = []

    def __len__(self) -> int:
        return len(self.keys)

    def begin_tar(self) -> None:
        self._tar_starts.append(len(self))

    def add(self, key: str, label: int, places: Sequence[tuple[str, TarMember]], columns: dict[str, Any] | None) -> str:
        # Adds a sample to the last tar begun, and returns its name.
        name = f"{self.tar_names[len(self._tar_starts) - 1]}/{key}"
        sizes = [member.size for extension, member in places if extension != COLUMNS_EXTENSION]
        self.keys.append(key)
        self.labels.append(label)
        self.tar_bytes.append(sample_tar_bytes(sizes[0], len(json_member(name, columns)), label >= 0, sizes[1:]))
        for extension, member in places:
            if extension not in self._number_of_extension:
                self._number_of_extension[extension] = len(self._extension_names)
                self._extension_names.append(extension)
            self._extensions.append(self._number_of_extension[extension])
            self._offsets.append(member.offset)
            self._sizes.append(member.size)
        self._starts.append(len(self._offsets))
        return name

    def item(self, position: int, is_labelled: bool) -> Item:
        tar = bisect.bisect_right(self._tar_starts, position) - 1
        file, name = self.files[tar], f"{self.tar_names[tar]}/{self.keys[position]}"
        (_, image), *others = (
            (
                self._extension_names[self._extensions[member]],
                Location(file, self._offsets[member], self._sizes[member]),
            )
            for member in range(self._starts[position], self._starts[position + 1])
        )
        columns, members = None, []
        for extension, location in others:
            if extension == COLUMNS_EXTENSION:
                columns = _parse_columns(read_location(location), f"Sample {name!r}")
            else:
                members.append((extension, location))
        return Item(name, self.labels[position] if is_labelled else None, image, tuple(members), columns)
