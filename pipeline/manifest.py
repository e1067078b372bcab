"""The shard set on disk: `manifest.json`, and one index file beside each tar.

A shard set is a folder with tars in WebDataset format and one `manifest.json` for all its splits. The
manifest says what must be there (sizes, sha256, numbers of samples), because tar readers lose the rest of a
damaged tar without an error. The index of a shard is DALI's format, so that it serves DALI and this project
alike:

    v1.2 NUM_SAMPLES
    cls 512 1 00000000.cls jpg 1536 117003 00000000.jpg json 119296 31 00000000.json
    ...

that is, one line a sample and four fields a member: extension, byte offset of the data in the tar, size in
bytes, member name.

This module imports no TensorFlow.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.atomic import open_atomically

MANIFEST_NAME = "manifest.json"
FORMAT = "keras_mae shard set"
VERSION = 1
INDEX_VERSION = "v1.2"
IMAGE_EXTENSIONS = ("jpg", "png", "webp")
LABEL_EXTENSION = "cls"
SPLIT_NAME = re.compile(r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*")


class ManifestError(ValueError):
    """A shard set, its manifest or an index is missing, damaged, or not what was asked for."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """One tar of a split.

    Attributes:
        file: name of the tar inside the shard set's folder.
        bytes: its size.
        sha256: its hash, hexadecimal.
        samples: how many samples it holds.
        index: name of its index file inside the folder.
    """

    file: str
    bytes: int
    sha256: str
    samples: int
    index: str


@dataclasses.dataclass(frozen=True)
class Split:
    """The shards of one split, in order; sample number i is the i-th in this order.

    Attributes:
        name: "train", "val", ...
        samples: number of samples in all shards together.
        shards: the tars, in order.
        options: everything that decided the bytes (source, seed, shard size, ...), as it was written.
    """

    name: str
    samples: int
    shards: tuple[Shard, ...]
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ShardSet:
    """A folder of shards, as its manifest describes it.

    Attributes:
        root: the folder.
        classes: class names; a sample's label is a position in it. None: no split has labels.
        splits: by name.
        written_with: versions of the libraries that wrote the manifest last.
    """

    root: str
    classes: tuple[str, ...] | None
    splits: dict[str, Split]
    written_with: dict[str, str] = dataclasses.field(default_factory=dict)

    def split(self, name: str | None) -> Split:
        """The split called `name`; None means the only one.

        Raises:
            ManifestError: there is no such split, or `name` is None and there are several or none.
        """
        existing = ", ".join(self.splits) or "none"
        if name is None:
            if len(self.splits) != 1:
                raise ManifestError(f"{self.root} has {len(self.splits)} splits ({existing}); name the one to read")
            return next(iter(self.splits.values()))
        if name not in self.splits:
            raise ManifestError(f"{self.root} has no split {name!r}; its splits are: {existing}")
        return self.splits[name]

    def fingerprint(self, name: str | None) -> str:
        """A sha256 (hexadecimal) that identifies the data of a split: the hash of its shards' hashes."""
        hashes = "".join(f"{shard.sha256}\n" for shard in self.split(name).shards)
        return hashlib.sha256(hashes.encode()).hexdigest()


def load_manifest(root: str | os.PathLike) -> ShardSet:
    """Reads the manifest of the shard set in `root` and checks that every file it lists is there and whole.

    Whole means: of the size that the manifest says. Contents are compared by `tools.verify_shards`.

    Args:
        root: folder of the shard set.

    Raises:
        ManifestError: no such folder, no manifest, a damaged or newer manifest, a listed file missing or cut.
    """
    shard_set = read_manifest(root)
    for split in shard_set.splits.values():
        for shard in split.shards:
            for fault in file_faults(root, shard):
                raise ManifestError(
                    f"{Path(root, shard.file).parent} is damaged: {fault}. "
                    "Copy the shard set again, or make it again with tools.make_shards in an empty folder"
                )
    return shard_set


def file_faults(root: str | os.PathLike, shard: Shard) -> list[str]:
    """What is wrong with the two files of a shard by their presence and size, one sentence each."""
    faults = []
    tar = Path(root, shard.file)
    if not tar.is_file():
        faults.append(f"{shard.file} is listed in {MANIFEST_NAME} but missing")
    elif (size := tar.stat().st_size) != shard.bytes:
        faults.append(f"{shard.file} has {size} bytes, expected {shard.bytes}")
    if not Path(root, shard.index).is_file():
        faults.append(f"{shard.index} (index of {shard.file}) is missing")
    return faults


def read_manifest(root: str | os.PathLike) -> ShardSet:
    """Reads the manifest of the shard set in `root` without looking at the files that it lists.

    Raises:
        ManifestError: no such folder, no manifest, or one that is damaged or of another format or version.
    """
    root = Path(root)
    path = root / MANIFEST_NAME
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise ManifestError(f"{root} {what}; expected a folder with a shard set (tools.make_shards makes one)")
    if not path.is_file():
        raise ManifestError(
            f"{root} has no {MANIFEST_NAME}, so it is no finished shard set; make one with tools.make_shards"
        )
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ManifestError(f"{path} is not valid JSON ({error}); it was cut or edited") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else content
        raise ManifestError(f"{path} is not a manifest of a shard set: expected format {FORMAT!r}, received {found!r}")
    if content.get("version") != VERSION:
        raise ManifestError(
            f"{path} has version {content.get('version')!r}; this software reads version {VERSION}. "
            "Update the software, or make the shards again"
        )
    try:
        return _parse(str(root), content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{path} is damaged: a field is missing or of the wrong type ({error!r})") from None
    except ManifestError as error:
        raise ManifestError(f"{path} is damaged: {error}") from None


def _parse(root: str, content: dict) -> ShardSet:
    classes = content["classes"]
    if classes is not None:
        classes = tuple(_typed(name, str) for name in _typed(classes, list))
    splits = {name: _parse_split(name, split) for name, split in _typed(content["splits"], dict).items()}
    return ShardSet(root, classes, splits, dict(content.get("written_with", {})))


def _parse_split(name: str, content: dict) -> Split:
    check_split_name(name)
    fields = {"file": str, "bytes": int, "sha256": str, "samples": int, "index": str}
    shards = tuple(
        Shard(**{field: _typed(shard[field], kind) for field, kind in fields.items()})
        for shard in _typed(content["shards"], list)
    )
    for shard in shards:
        for file in (shard.file, shard.index):
            # A manifest may come from anywhere: it must not make a reader open files elsewhere.
            if os.path.basename(file) != file or file in ("", ".", ".."):
                raise ManifestError(f"split {name!r} lists {file!r}, expected a plain file name")
    split = Split(name, _typed(content["samples"], int), shards, _typed(content["options"], dict))
    total = sum(shard.samples for shard in shards)
    if split.samples != total:
        raise ManifestError(f"split {name!r} says {split.samples} samples, but its shards say {total} together")
    return split


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"expected {kind.__name__}, received {value!r}")
    return value


def check_split_name(name: str) -> None:
    """Raises ManifestError unless `name` is letters, digits, `_`, and `-` between them (for file names)."""
    if not SPLIT_NAME.fullmatch(name):
        raise ManifestError(f"{name!r} cannot name a split; expected letters, digits, '_', and '-' between them")


def write_manifest(shard_set: ShardSet) -> None:
    """Writes `manifest.json` into `shard_set.root`, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    splits = {
        split.name: {
            "samples": split.samples,
            "options": split.options,
            "shards": [dataclasses.asdict(shard) for shard in split.shards],
        }
        for split in shard_set.splits.values()
    }
    content = {
        "format": FORMAT,
        "version": VERSION,
        "classes": shard_set.classes,
        "splits": splits,
        "written_with": shard_set.written_with,
    }
    with open_atomically(Path(shard_set.root, MANIFEST_NAME)) as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")


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
        extensions: per sample, the extension of its image: jpg, png or webp.
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


def index_text(rows: Iterable[Sequence[Member]]) -> str:
    """The index file of a shard as text.

    Args:
        rows: per sample, in tar order, its members in tar order.
    """
    lines = [" ".join(f"{m.extension} {m.offset} {m.size} {m.name}" for m in row) for row in rows]
    return "\n".join([f"{INDEX_VERSION} {len(lines)}", *lines, ""])


def write_index(path: str | os.PathLike, rows: Iterable[Sequence[Member]]) -> None:
    """Writes the index of a shard, whole or not at all; arguments as for `index_text`."""
    with open_atomically(path) as file:
        file.write(index_text(rows).encode())


def read_index(path: str | os.PathLike, expected_samples: int) -> ShardIndex:
    """Reads the index of a shard.

    Args:
        path: index file.
        expected_samples: the number of samples that the manifest gives the shard.

    Raises:
        ManifestError: the file is missing, damaged, or holds another number of samples.
    """
    lines = _read_index_lines(path, expected_samples)
    # All members of all samples in flat columns: a loop over samples would take 10 times as long.
    counts = np.array([line.count(" ") + 1 for line in lines], np.int64)  # (samples,), fields
    fields = " ".join(lines).split(" ") if lines else []
    offsets, sizes = _integers(fields[1::4]), _integers(fields[2::4])  # (members,)
    if np.any(counts % 4) or offsets is None or sizes is None:
        raise ManifestError(f"{path} is damaged: expected 'extension offset size name' for each member of a sample")
    extensions, names = fields[0::4], fields[3::4]
    sample_of_member = np.repeat(np.arange(len(lines)), counts // 4)
    is_image = np.array([extension in IMAGE_EXTENSIONS for extension in extensions], bool)
    is_label = np.array([extension == LABEL_EXTENSION for extension in extensions], bool)
    num_images = np.bincount(sample_of_member[is_image], minlength=len(lines))
    num_labels = np.bincount(sample_of_member[is_label], minlength=len(lines))
    for number in np.flatnonzero((num_images != 1) | (num_labels > 1))[:1]:
        raise ManifestError(
            f"{path}: sample {number} needs one image and at most one label, received {lines[number][:200]!r}"
        )
    image_extensions = tuple(extensions[member] for member in np.flatnonzero(is_image))
    keys = tuple(
        names[member][: -len(extension) - 1]
        for member, extension in zip(np.flatnonzero(is_image), image_extensions, strict=True)
    )
    for sample, extension, name in zip(sample_of_member.tolist(), extensions, names, strict=True):
        if name != f"{keys[sample]}.{extension}":
            raise ManifestError(
                f"{path}: sample {sample} should have members '{keys[sample]}.EXTENSION', received {name!r}"
            )
    label_offset, label_size = np.zeros((2, len(lines)), np.int64)
    label_offset[sample_of_member[is_label]] = offsets[is_label]
    label_size[sample_of_member[is_label]] = sizes[is_label]
    return ShardIndex(keys, image_extensions, offsets[is_image], sizes[is_image], label_offset, label_size)


def _read_index_lines(path: str | os.PathLike, expected_samples: int) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise ManifestError(f"{path} is missing: the index of a shard") from None
    except UnicodeDecodeError:
        raise ManifestError(f"{path} is not an index of a shard: it is not text") from None
    expected = f"{INDEX_VERSION} {expected_samples}"
    if lines[0] != expected:
        raise ManifestError(f"{path}: the first line should be {expected!r}, received {lines[0][:80]!r}")
    if lines[-1] != "" or len(lines) != expected_samples + 2:
        received = len(lines) - 2 + (lines[-1] != "")
        raise ManifestError(f"{path} was cut or edited: expected {expected_samples} samples, received {received}")
    return lines[1:-1]


def _integers(texts: list[str]) -> np.ndarray | None:
    try:
        return np.array([int(text) for text in texts], np.int64)
    except ValueError:
        return None
