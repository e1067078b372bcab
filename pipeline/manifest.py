"""The shard set on disk: a folder of tars in WebDataset format, and one `manifest.json` for all its splits.

The manifest says what must be there (sizes, sha256, numbers of samples), because tar readers lose the rest of
a damaged tar without an error. Beside each tar lies its index (`shard_index`). This module imports no TensorFlow.
"""

import dataclasses
import hashlib
import json
import os
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.array_files import DTYPES, ArrayKind
from pipeline.locations import Location, SourceError, join, read_location

MANIFEST_NAME = "manifest.json"
FORMAT = "keras_mae shard set"
VERSION = 1
SPLIT_NAME = re.compile(r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBER_LIMIT = 1 << 63  # what int64 holds


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
        index: name of its index file inside the folder, as `index_name` gives it.
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
        written_with: versions of the libraries that wrote it.
        arrays: what the images are, where they are arrays (`npy`); None: they are pictures (`jpg`, `png`, `webp`).
    """

    name: str
    samples: int
    shards: tuple[Shard, ...]
    options: dict[str, Any]
    written_with: dict[str, str] = dataclasses.field(default_factory=dict)
    arrays: ArrayKind | None = None


@dataclasses.dataclass(frozen=True)
class ShardSet:
    """A folder of shards, as its manifest describes it.

    Attributes:
        root: the folder, or its URL.
        classes: class names; a sample's label is a position in it. None: no split has labels.
        splits: by name.
    """

    root: str
    classes: tuple[str, ...] | None
    splits: dict[str, Split]

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
    listed = [
        name for split in shard_set.splits.values() for shard in split.shards for name in (shard.file, shard.index)
    ]
    sizes = storage.file_sizes(root, listed)
    for split in shard_set.splits.values():
        for shard in split.shards:
            for fault in file_faults(shard, sizes):
                raise ManifestError(
                    f"{shard_set.root} is damaged: {fault}. Copy the shard set again, "
                    "or mend it with tools.verify_shards --repair"
                )
    return shard_set


def file_faults(shard: Shard, sizes: dict[str, int]) -> list[str]:
    """What is wrong with the two files of a shard by their presence and size, one sentence each.

    Args:
        shard: as the manifest lists it.
        sizes: bytes of each file in the folder (`storage.file_sizes`).
    """
    faults = []
    if shard.file not in sizes:
        faults.append(f"{shard.file} is listed in {MANIFEST_NAME} but missing")
    elif sizes[shard.file] != shard.bytes:
        faults.append(f"{shard.file} has {sizes[shard.file]} bytes, expected {shard.bytes}")
    if shard.index not in sizes:
        faults.append(f"{shard.index} (index of {shard.file}) is missing")
    return faults


def read_manifest(root: str | os.PathLike) -> ShardSet:
    """Reads the manifest of the shard set in `root` without looking at the files that it lists.

    Raises:
        ManifestError: no such folder, no manifest, or one that is damaged or of another format or version.
    """
    root = os.fspath(root)
    path = join(root, MANIFEST_NAME)
    if not storage.is_folder(root):
        what = "is a file" if storage.exists(root) else "does not exist"
        raise ManifestError(f"{root} {what}; expected a folder with a shard set (tools.make_shards makes one)")
    if not storage.exists(path):
        raise ManifestError(
            f"{root} has no {MANIFEST_NAME}, so it is no finished shard set; make one with tools.make_shards"
        )
    try:
        content = json.loads(read_location(Location(path)))
    except SourceError as error:
        raise ManifestError(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path} is not valid JSON ({error}); it was cut or edited") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else content
        raise ManifestError(
            f"{path} is not a manifest of a shard set: expected format {FORMAT!r}, received {reprlib.repr(found)}"
        )
    version = content.get("version")
    if type(version) is not int or version != VERSION:  # True equals 1
        raise ManifestError(
            f"{path} has version {reprlib.repr(version)}; this software reads version {VERSION}. "
            "Update the software, or make the shards again"
        )
    try:
        return _parse(root, content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{path} is damaged: a field is missing or of the wrong type ({error!r})") from None
    except ManifestError as error:
        raise ManifestError(f"{path} is damaged: {error}") from None


def _parse(root: str, content: dict) -> ShardSet:
    classes = content["classes"]
    if classes is not None:
        classes = tuple(_typed(name, str) for name in _typed(classes, list))
        _refuse_repeated(classes, "class")
    splits = {name: _parse_split(name, split) for name, split in _typed(content["splits"], dict).items()}
    _refuse_repeated([shard.file for split in splits.values() for shard in split.shards], "file")
    return ShardSet(root, classes, splits)


def _parse_split(name: str, content: dict) -> Split:
    check_split_name(name)
    shards = tuple(_parse_shard(name, shard) for shard in _typed(content["shards"], list))
    options, written_with = _typed(content["options"], dict), _typed(content.get("written_with", {}), dict)
    split = Split(name, _number(content["samples"]), shards, options, written_with, _parse_arrays(content))
    total = sum(shard.samples for shard in shards)
    if split.samples != total:
        raise ManifestError(f"split {name!r} says {split.samples} samples, but its shards say {total} together")
    return split


def _parse_arrays(content: dict) -> ArrayKind | None:
    if "arrays" not in content:
        return None
    kind = ArrayKind(_typed(content["arrays"]["dtype"], str), _number(content["arrays"]["channels"]))
    if kind.dtype not in DTYPES.values() or kind.channels < 1:
        raise ManifestError(f"arrays are listed as {kind}, expected uint8 or uint16 of 1 channel or more")
    return kind


def _parse_shard(split: str, content: dict) -> Shard:
    shard = Shard(
        file=_typed(content["file"], str),
        bytes=_number(content["bytes"]),
        sha256=_typed(content["sha256"], str),
        samples=_number(content["samples"]),
        index=_typed(content["index"], str),
    )
    # A manifest may come from anywhere: it must not make a reader or a repair touch other files.
    if not is_tar_name(shard.file):
        raise ManifestError(f"split {split!r} lists {shard.file!r:.80}, expected a plain file name such as train-0.tar")
    if shard.index != index_name(shard.file):
        raise ManifestError(
            f"{shard.file} is listed with the index {shard.index!r:.80}, expected {index_name(shard.file)!r}"
        )
    if not _SHA256.fullmatch(shard.sha256):
        raise ManifestError(
            f"{shard.file} is listed with the sha256 {shard.sha256!r:.80}, expected 64 hexadecimal digits"
        )
    return shard


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"expected {kind.__name__}, received {reprlib.repr(value)}")
    return value


def _number(value: Any) -> int:
    if not 0 <= _typed(value, int) < _NUMBER_LIMIT:
        raise ManifestError(f"expected a number from 0 to 2**63 - 1, received {reprlib.repr(value)}")
    return value


def _refuse_repeated(names: Sequence[str], what: str) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise ManifestError(f"the {what} {name!r:.80} is listed twice")
        seen.add(name)


def is_tar_name(name: str) -> bool:
    """Whether a shard may be called so: a plain file name, not hidden, that ends in ".tar"."""
    return os.path.basename(name) == name and name.endswith(".tar") and not name.startswith(".")


def index_name(tar_name: str) -> str:
    """Name of the index file that belongs to a tar."""
    return str(Path(tar_name).with_suffix(".idx"))


def check_split_name(name: str) -> None:
    """Raises ManifestError unless `name` is letters, digits, `_`, and `-` between them (for file names)."""
    if not SPLIT_NAME.fullmatch(name):
        raise ManifestError(f"{name!r} cannot name a split; expected letters, digits, '_', and '-' between them")


def write_manifest(shard_set: ShardSet) -> None:
    """Writes `manifest.json` into `shard_set.root`, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    storage.sync_folder(shard_set.root)  # no manifest without the shards that it lists
    storage.write_atomically(join(shard_set.root, MANIFEST_NAME), manifest_bytes(shard_set))
    storage.sync_folder(shard_set.root)


def manifest_bytes(shard_set: ShardSet) -> bytes:
    """The contents of `manifest.json`."""
    splits = {
        split.name: {
            "samples": split.samples,
            "options": split.options,
            "written_with": split.written_with,
            **({"arrays": split.arrays._asdict()} if split.arrays else {}),
            "shards": [dataclasses.asdict(shard) for shard in split.shards],
        }
        for split in shard_set.splits.values()
    }
    content = {"format": FORMAT, "version": VERSION, "classes": shard_set.classes, "splits": splits}
    return json.dumps(content, indent=1).encode() + b"\n"
