"""Where samples come from: one small class for each kind of source, all with the same two methods.

`scan()` lists the samples without opening them, `read(item)` gives the encoded bytes of one. A source can be
pickled, because several processes read from it at once. This module imports no TensorFlow.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class SourceError(ValueError):
    """The images that were given cannot be read as a source, or one of them is not an image."""


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One image of a source, not yet read.

    Attributes:
        path: where it lies in the source, relative, with forward slashes.
        size: bytes.
        label: position of its class in the source's classes; None where the source has none.
    """

    path: str
    size: int
    label: int | None


@dataclasses.dataclass(frozen=True)
class Listing:
    """Everything that a source holds.

    Attributes:
        items: the images, sorted by path.
        classes: class names; None where the source has none.
        ignored: paths of files that are not images by their names, sorted.
    """

    items: tuple[Item, ...]
    classes: tuple[str, ...] | None
    ignored: tuple[str, ...]

    def fingerprint(self) -> str:
        """A sha256 (hexadecimal) over the paths and sizes of all images: it changes when they do."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(f"{item.path}\0{item.size}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


class Source(Protocol):
    """What `tools.make_shards` asks of a source."""

    name: str

    def scan(self) -> Listing:
        """Lists the samples without opening them.

        Raises:
            SourceError: there is nothing to read, or it is ambiguous.
        """

    def read(self, item: Item) -> bytes:
        """The encoded bytes of one image.

        Raises:
            SourceError: it is gone, cannot be read, or has changed since `scan`.
        """


class FolderSource:
    """A folder of images: one folder for each class, or the images directly in it (then without labels).

    Class folders may have folders inside; every image below belongs to the class. Labels follow the sorted
    names of the class folders. Hidden files and folders are skipped, symbolic links are followed.

    Args:
        root: the folder.
    """

    name = "folder"

    def __init__(self, root: str | os.PathLike):
        self.root = os.fspath(root)

    def scan(self) -> Listing:
        """Lists the images; see `Source.scan`."""
        root = Path(self.root)
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "does not exist"
            raise SourceError(f"{root} {what}; expected a folder with images, or with one folder for each class")
        files = sorted(_walk(self.root, "", frozenset()))
        images = [(path, size) for path, size in files if path.lower().endswith(IMAGE_SUFFIXES)]
        ignored = tuple(path for path, _ in files if not path.lower().endswith(IMAGE_SUFFIXES))
        if not images:
            raise SourceError(
                f"{root} has no images: expected files ending in {', '.join(IMAGE_SUFFIXES)}, "
                f"received {len(ignored)} other files"
            )
        classes = self._classes([path for path, _ in images])
        if classes is None:
            return Listing(tuple(Item(path, size, None) for path, size in images), None, ignored)
        labels = {name: label for label, name in enumerate(classes)}
        items = tuple(Item(path, size, labels[path.split("/", 1)[0]]) for path, size in images)
        return Listing(items, classes, ignored)

    def _classes(self, images: list[str]) -> tuple[str, ...] | None:
        # `images`: relative paths. None where all of them lie directly in the root.
        beside = [path for path in images if "/" not in path]
        inside = {path.split("/", 1)[0] for path in images if "/" in path}
        if beside and inside:
            raise SourceError(
                f"{self.root} has images beside class folders: {beside[0]!r} lies beside {min(inside)!r}. "
                "Expected either class folders alone or images alone; move or delete one kind"
            )
        folders = {entry.name for entry in os.scandir(self.root) if _is_visible(entry) and entry.is_dir()}
        if inside and (empty := sorted(folders - inside)):
            raise SourceError(
                f"{self.root} has a class folder without images: {empty[0]!r}. "
                "Expected at least one image in each; add images or delete the folder"
            )
        return tuple(sorted(inside)) or None

    def read(self, item: Item) -> bytes:
        """The bytes of one image file; see `Source.read`."""
        path = os.path.join(self.root, item.path)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror or error}") from None
        if len(data) != item.size:
            raise SourceError(
                f"{path} changed while shards were made: it had {item.size} bytes, and now has {len(data)}"
            )
        return data


def _is_visible(entry: os.DirEntry) -> bool:
    return not entry.name.startswith(".")


def _walk(folder: str, prefix: str, ancestors: frozenset[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    # Yields (relative path, bytes) of every visible file below `folder`. `ancestors` ends loops of links.
    try:
        status = os.stat(folder)
        entries = [entry for entry in os.scandir(folder) if _is_visible(entry)]
    except OSError as error:
        raise SourceError(f"{folder} cannot be read: {error.strerror or error}") from None
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        raise SourceError(f"{folder} is a link to a folder that contains it; delete the link")
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/", ancestors | {identity})
            continue
        try:
            yield f"{prefix}{entry.name}", entry.stat().st_size
        except OSError as error:
            raise SourceError(f"{entry.path} cannot be read: {error.strerror or error}") from None
