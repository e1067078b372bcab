"""A folder of images as a source: one folder for each class, or the images directly in it."""

import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pipeline import storage
from pipeline.locations import Location, SourceError, is_url, is_web, join, named_errors, open_filesystem
from pipeline.sources.base import Fingerprint, Item, Listing, PackedNames, json_member, sample_tar_bytes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
ARRAY_SUFFIXES = (".npy",)


class FolderSource:
    """A folder of images: one folder for each class, or the images directly in it (then without labels).

    Images are pictures; where there are none, arrays (`.npy`). Beside pictures arrays are something else, and ignored.

    Class folders may have folders inside; every image below belongs to the class. Labels follow the sorted
    names of the class folders. Hidden files and folders are skipped, symbolic links are followed. What is no file,
    such as a pipe, is ignored whatever its name.

    Args:
        root: the folder, or its URL.
    """

    name = "folder"

    def __init__(self, root: str | os.PathLike):
        self.root = os.fspath(root)

    def scan(self) -> Listing:
        """Lists the images, sorted by path; see `Source.scan`."""
        if is_web(self.root):
            raise SourceError(f"{self.root}: web servers do not list folders; give a list of images with --source=list")
        if not storage.is_folder(self.root):
            what = "is not a folder" if storage.exists(self.root) else "does not exist"
            raise SourceError(f"{self.root} {what}; expected a folder with images, or with one folder for each class")
        for suffixes in (IMAGE_SUFFIXES, ARRAY_SUFFIXES):
            listing = self._list(suffixes)
            if len(listing):
                return listing
        raise SourceError(
            f"{self.root} has no images: expected files ending in {', '.join(IMAGE_SUFFIXES + ARRAY_SUFFIXES)}, "
            f"received {len(listing.ignored)} other files"
        )

    def _list(self, suffixes: tuple[str, ...]) -> Listing:
        # All files with one of these suffixes; the others are ignored.
        self._names, sizes, class_of = PackedNames(), [], []
        ignored, fingerprint, is_flat = [], Fingerprint(), None  # not known before the first file
        classes: list[str] = []
        for file in _walk_url(self.root) if is_url(self.root) else _walk(self.root, "", frozenset()):
            if not (file.is_regular and file.path.lower().endswith(suffixes)):
                ignored.append(file.path)
                continue
            top = file.path.split("/", 1)[0] if "/" in file.path else None
            if is_flat is None:
                is_flat = top is None
            elif is_flat != (top is None):
                self._refuse_mixture(file.path)
            if top is not None and (not classes or classes[-1] != top):
                classes.append(top)  # files come sorted, so those of a class follow each other
            self._names.append(file.path)
            sizes.append(file.size)
            class_of.append(len(classes) - 1)
            fingerprint.add(file.path, file.size, modified=file.modified)
        self._sizes = np.array(sizes, np.int64)
        self._labels = self._number_classes(classes, class_of) if classes else None
        json_sizes = np.fromiter((len(json_member(name)) for name in self._names), np.int64, len(sizes))
        return Listing(
            sample_tar_bytes(self._sizes, json_sizes, bool(classes)),
            self._labels,
            tuple(sorted(classes)) if classes else None,
            fingerprint.contents(),
            fingerprint.stamp(),
            tuple(ignored),
        )

    def _number_classes(self, classes: list[str], class_of: list[int]) -> np.ndarray:
        # Folders are walked in the order of "name/", which differs from that of their names: "a-b/" < "a/".
        # Object stores have no empty folders.
        folders = (
            ()
            if is_url(self.root)
            else (entry.name for entry in os.scandir(self.root) if _is_visible(entry) and entry.is_dir())
        )
        if empty := sorted(set(folders) - set(classes)):
            raise SourceError(
                f"{self.root} has a class folder without images: {empty[0]!r}. "
                "Expected at least one image in each; add images or delete the folder"
            )
        labels = {name: label for label, name in enumerate(sorted(classes))}
        return np.array([labels[name] for name in classes], np.int32)[np.array(class_of)]

    def _refuse_mixture(self, path: str) -> None:
        first = self._names[0]
        beside, inside = (path, first) if "/" in first else (first, path)
        raise SourceError(
            f"{self.root} has images beside class folders: {beside!r} lies beside {inside.split('/')[0]!r}. "
            "Expected either class folders alone or images alone; move or delete one kind"
        )

    def items(self, positions: Sequence[int]) -> list[Item]:
        """The images at some positions; see `Source.items`."""
        items = []
        for position in positions:
            name = self._names[position]
            label = None if self._labels is None else int(self._labels[position])
            location = Location(join(self.root, name), 0, int(self._sizes[position]))
            items.append(Item(name, label, location))
        return items


class _File(NamedTuple):
    path: str  # relative
    size: int
    modified: int
    is_regular: bool = True  # and no pipe or device, which reading would wait for


def _walk_url(url: str) -> Iterator[_File]:
    # Like `_walk`, behind a URL. Sorted names, not folders: one listing gives all of them.
    with named_errors(url):
        system, root = open_filesystem(url)
        found = system.find(root, detail=True)
    start = len(root.rstrip("/")) + 1
    paths = {name[start:]: status for name, status in found.items()}
    for path in sorted(paths):
        if not any(part.startswith(".") for part in path.split("/")):
            if (size := paths[path].get("size")) is None:
                raise SourceError(f"{url} cannot be read as a folder: its server does not tell the size of {path!r}")
            yield _File(path, int(size), 0)


def _is_visible(entry: os.DirEntry) -> bool:
    return not entry.name.startswith(".")


def _walk(folder: str, prefix: str, ancestors: frozenset[tuple[int, int]]) -> Iterator[_File]:
    # Yields every visible file below `folder`, sorted by path. `ancestors` ends loops of links.
    try:
        status = os.stat(folder)
        entries = [entry for entry in os.scandir(folder) if _is_visible(entry)]
        # A folder sorts by its name and "/", as the paths in it do.
        entries.sort(key=lambda entry: f"{entry.name}/" if entry.is_dir() else entry.name)
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
            entry_status = entry.stat()
        except OSError as error:
            raise SourceError(f"{entry.path} cannot be read: {error.strerror or error}") from None
        is_regular = stat.S_ISREG(entry_status.st_mode)
        yield _File(f"{prefix}{entry.name}", entry_status.st_size, entry_status.st_mtime_ns, is_regular)
