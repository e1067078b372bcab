"""A list of images as a source, and what all sources made of lists share: their samples, kept in columns."""

import array
import itertools
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.locations import WHOLE, Location, SourceError, check_url, is_url, join
from pipeline.sources.base import (
    MAX_EXTENSION_BYTES,
    UNKNOWN_SIZE,
    Fingerprint,
    Item,
    Listing,
    PackedNames,
    json_member,
    sample_tar_bytes,
)
from pipeline.sources.label_column import WITHOUT_LABELS, LabelColumn, check_classes
from pipeline.sources.list_files import ListFile, RowError

IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "url", "image_path")
LABEL_COLUMNS = ("label", "class", "class_name", "category", "target")
# When so many files do not exist, the folder is wrong, and there is no need to look for all others.
MAX_MISSING = 1000


class ListSource:
    """A list of images: a CSV, TSV, JSON lines or Parquet file with one row for each sample.

    A row names its image, perhaps its label, and whatever else: further columns go into the sample's `json`. Spaces
    after a comma or tab do not count, and of JSON's numbers NaN and infinities become null.

    Labels are either positions in the classes, from 0 on, or names of classes. Digits are a position, except where
    they are the name of one of the given `classes`.

    Args:
        file: path or URL of the list, ending in .csv, .tsv, .jsonl, .ndjson or .parquet. CSV and TSV name their
            columns in the first line.
        image_root: folder or URL that the images' paths are relative to; by default the list's own folder. Absolute
            paths and URLs stand for themselves.
        image_column: column of the images' paths; by default the first that there is of `IMAGE_COLUMNS`.
        label_column: column of the labels; by default the first that there is of `LABEL_COLUMNS`, and no labels if
            there is none. "" reads the list without labels.
        classes: names of the classes. By default the sorted names that occur, or "0", "1", ... up to the largest
            position.
        members: columns that name further files of the samples, by the extension that the shards give them:
            {"seg.png": "mask_path"}. A row that leaves the column empty has none.

    Raises:
        SourceError: `file` is no kind of list, or `members` or `classes` make no sense.
    """

    name = "list"

    def __init__(
        self,
        file: str | os.PathLike,
        *,
        image_root: str | os.PathLike | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        classes: Sequence[str] | None = None,
        members: Mapping[str, str] | None = None,
    ):
        self._list = ListFile(file)
        self.image_root = _folder_of(self._list.file) if image_root is None else os.fspath(image_root)
        self.image_column = image_column
        self.label_column = label_column
        self.classes = None if classes is None else check_classes(classes)
        self.members = dict(members or {})
        for extension in self.members:
            if extension in ("cls", "json") or not all(part.isidentifier() for part in extension.split(".")):
                raise SourceError(
                    f"--member names the extension {extension!r}; expected one such as 'seg.png', and not cls or json"
                )
            if len(extension.encode()) > MAX_EXTENSION_BYTES:
                raise SourceError(
                    f"--member names an extension of {len(extension.encode())} bytes, {extension!r}; "
                    f"expected at most {MAX_EXTENSION_BYTES}"
                )

    def scan(self) -> Listing:
        """Lists the rows, in their order; see `Source.scan`."""
        rows = self._list.rows()
        first = next(rows, None)
        if first is None:
            raise SourceError(f"{self._list.file} lists no images; expected at least one row")
        self._choose_columns(list(first))
        labels = None if self._label is None else LabelColumn(self.classes)
        self._images = ListedImages(self.image_root, labels, tuple(self.members))
        missing = MissingFiles()
        for values in itertools.chain([first], rows):
            try:
                self._add(values)
            except MissingFile as error:
                missing.add(f"{self._list.where()} {error}", len(self._images))
            except RowError as error:
                raise SourceError(f"{self._list.where()} {error}") from None
        missing.refuse(len(self._images))
        return self._images.finish()

    def items(self, positions: Sequence[int]) -> list[Item]:
        """The rows at some positions, read again from the list; see `Source.items`."""
        items = []
        for position, values in zip(positions, self._list.read(positions), strict=True):
            _, _, member_paths = self._take(values)
            items.append(self._images.item(position, values, member_paths))
        return items

    def _add(self, values: dict[str, Any]) -> None:
        path, label, member_paths = self._take(values)
        if self._label is None and self.label_column is None and not values.keys().isdisjoint(LABEL_COLUMNS):
            raise RowError(f"has a label, and the first row has none; label all rows{WITHOUT_LABELS}")
        self._images.add(path, label, values, member_paths)

    def _take(self, values: dict[str, Any]) -> tuple[Any, Any, list[Any]]:
        # Image, label and members of a row; its image and label columns are removed from `values`.
        member_paths = [values.get(column) for column in self.members.values()] if self.members else []
        path = values.pop(self._image, None)
        return path, None if self._label is None else values.pop(self._label, None), member_paths

    def _choose_columns(self, columns: list[str]) -> None:
        named = {"--image_column": self.image_column, "--label_column": self.label_column}
        named |= {f"--member={extension}:{column}": column for extension, column in self.members.items()}
        for flag, column in named.items():
            if column and column not in columns:
                self._refuse_columns(f"has no column {column!r}, which {flag} names", columns)
        self._image = self.image_column or next((name for name in IMAGE_COLUMNS if name in columns), None)
        if self._image is None:
            self._refuse_columns(f"has no column for images: expected one of {', '.join(IMAGE_COLUMNS)}", columns)
        found = next((name for name in LABEL_COLUMNS if name in columns), None)
        self._label = found if self.label_column is None else self.label_column or None
        if self._label is None and self.label_column is None and self.classes is not None:
            self._refuse_columns(
                f"has no column for labels, but --classes is given: expected one of {', '.join(LABEL_COLUMNS)}", columns
            )

    def _refuse_columns(self, problem: str, columns: list[str]) -> None:
        raise SourceError(f"{self._list.file} {problem}; its columns are {', '.join(map(repr, columns))}")


def _folder_of(file: str) -> str:
    return file.split("?", 1)[0].rpartition("/")[0] if is_url(file) else os.path.dirname(file)


class MissingFile(RowError):
    """A file that a row names does not exist."""


class MissingFiles:
    """Rows whose files do not exist: told in one message when all rows are known, or already `MAX_MISSING` such."""

    def __init__(self):
        self._count, self._first = 0, ""

    def add(self, problem: str, num_listed: int) -> None:
        """Notes a row, told by a sentence, that comes after `num_listed` whose files exist.

        Raises:
            SourceError: there are too many.
        """
        self._first = self._first or problem
        self._count += 1
        if self._count == MAX_MISSING:
            self.refuse(num_listed)

    def refuse(self, num_listed: int) -> None:
        """Raises SourceError if there are any; `num_listed` are the rows whose files exist."""
        if self._count == 1:
            raise SourceError(self._first)
        if self._count:
            rows = f"{'the first ' if self._count == MAX_MISSING else ''}{self._count + num_listed}"
            raise SourceError(f"{self._count} of {rows} rows name files that do not exist. The first: {self._first}")


class ListedImages:
    """The samples of a list in columns: about 40 bytes each, and the image's path.

    Args:
        root: folder or URL that paths are relative to.
        labels: collects the labels; None if there are none.
        member_extensions: extensions of the further files that a sample may have.
    """

    def __init__(self, root: str | os.PathLike, labels: LabelColumn | None, member_extensions: Sequence[str] = ()):
        self._root = os.fspath(root)
        self._label_column = labels
        self._member_extensions = member_extensions
        self._names = PackedNames()
        self._sizes, self._tar_bytes = array.array("q"), array.array("q")
        self._member_sizes = [array.array("q") for _ in member_extensions]
        self._fingerprint = Fingerprint()

    def add(
        self,
        path: Any,
        label: Any = None,
        columns: Mapping[str, Any] | None = None,
        member_paths: Sequence[Any] = (),
    ) -> None:
        """Adds a sample.

        Args:
            path: of its image, as the list has it; becomes its name.
            label: its label, where there are labels.
            columns: what its `json` holds besides the name.
            member_paths: for each of the member extensions a path, or None or "".

        Raises:
            MissingFile: the image or a member does not exist.
            RowError: it is no file, or the label cannot be used.
        """
        if self._label_column is not None:
            self._label_column.append(label)
        size, modified = self._look_up(path)
        text = json_member(path, columns)
        self._fingerprint.add(path, size, label, text.decode(), modified=modified)
        sizes = [self._add_member(*member) for member in zip(self._member_sizes, member_paths, strict=True)]
        self._names.append(path)
        self._sizes.append(size)
        if size == WHOLE or WHOLE in sizes:
            self._tar_bytes.append(UNKNOWN_SIZE)
            return
        present = [size for size, member in zip(sizes, member_paths, strict=True) if member]
        self._tar_bytes.append(sample_tar_bytes(size, len(text), self._label_column is not None, present))

    def __len__(self) -> int:
        return len(self._names)

    def finish(self) -> Listing:
        """The listing of all samples; none can be added afterwards."""
        self._labels, classes = (None, None) if self._label_column is None else self._label_column.finish()
        self._fingerprint.add("classes", *(classes or ()))
        contents, stamp = self._fingerprint.contents(), self._fingerprint.stamp()
        del self._fingerprint, self._label_column
        return Listing(np.frombuffer(self._tar_bytes, np.int64), self._labels, classes, contents, stamp)

    def item(self, position: int, columns: Mapping[str, Any] | None = None, member_paths: Sequence[Any] = ()) -> Item:
        """A sample, with the columns and the paths of members that it was added with."""
        name = self._names[position]
        members = tuple(
            (extension, Location(join(self._root, path), 0, sizes[position]))
            for extension, sizes, path in zip(self._member_extensions, self._member_sizes, member_paths, strict=True)
            if path
        )
        label = None if self._labels is None else int(self._labels[position])
        return Item(name, label, Location(join(self._root, name), 0, self._sizes[position]), members, columns)

    def _add_member(self, sizes: array.array, path: Any) -> int:
        size, modified = (0, 0) if path is None or path == "" else self._look_up(path)
        self._fingerprint.add(path, size, modified=modified)
        sizes.append(size)
        return size

    def _look_up(self, path: Any) -> tuple[int, int]:
        # Size and time of change; `WHOLE` and 0 for a URL, where asking for each would take too long.
        if type(path) is not str or not path:
            raise RowError(f"names {path!r}; expected the path or URL of a file")
        file = join(self._root, path)
        try:
            if is_url(file):
                path.encode()
                check_url(file)
                return WHOLE, 0
            status = os.stat(file)
        except FileNotFoundError:
            problem = f"names {path!r}, but {file} does not exist; correct it or the folder of images"
            raise MissingFile(problem) from None
        except (OSError, ValueError) as error:
            raise RowError(f"names {path!r}, which cannot be read: {error}") from None
        if not stat.S_ISREG(status.st_mode):
            raise RowError(f"names {path!r}, but {file} is no file")
        return status.st_size, status.st_mtime_ns
