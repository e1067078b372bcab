"""The images of Places365: folders of images, a text file that lists those of a split, and one of categories."""

import os
from collections.abc import Iterator, Sequence

from pipeline.locations import SourceError, named_errors, open_file
from pipeline.sources.base import Item, Listing
from pipeline.sources.label_column import LabelColumn
from pipeline.sources.list_files import RowError, TextLines
from pipeline.sources.lists import ListedImages, MissingFile, MissingFiles


class PlacesSource:
    """The images that a list of Places365 names, in its order.

    A line of the list is a path and a label, "/a/airfield/00000001.jpg 0" in places365_train_standard.txt or
    "Places365_val_00000001.jpg 165" in places365_val.txt, or a path alone in places365_test.txt, which is read
    without labels. A leading slash is left out, from paths as from the names of classes ("a/airfield").

    Args:
        root: folder or URL that the paths are relative to: data_256, val_256 or test_256 of the small images.
        file_list: path or URL of the list.
        categories: path or URL of categories_places365.txt, with lines "/a/airfield 0". A list without labels
            needs none.
    """

    name = "places"

    def __init__(
        self, root: str | os.PathLike, file_list: str | os.PathLike, categories: str | os.PathLike | None = None
    ):
        self.root, self.file_list = os.fspath(root), os.fspath(file_list)
        self.categories = None if categories is None else os.fspath(categories)

    def scan(self) -> Listing:
        """Lists the images; see `Source.scan`."""
        is_labelled, missing = None, MissingFiles()
        for line, (path, *label) in _numbered_fields(self.file_list):
            try:
                if is_labelled is None:
                    is_labelled = bool(label)
                    labels = LabelColumn(self._read_classes()) if is_labelled else None
                    self._images = ListedImages(self.root, labels)
                elif is_labelled != bool(label):
                    has, have = ("a label", "none") if label else ("no label", "one")
                    raise RowError(f"has {has}, and the lines before it have {have}; label all lines or none")
                self._images.add(path, _number(label[0]) if label else None)
            except MissingFile as error:
                missing.add(f"{self.file_list}, line {line} {error}", len(self._images))
            except RowError as error:
                raise SourceError(f"{self.file_list}, line {line} {error}") from None
        if is_labelled is None:
            raise SourceError(f"{self.file_list} lists no images; expected at least one line")
        missing.refuse(len(self._images))
        return self._images.finish()

    def items(self, positions: Sequence[int]) -> list[Item]:
        """The images at some positions; see `Source.items`."""
        return [self._images.item(position) for position in positions]

    def _read_classes(self) -> tuple[str, ...]:
        if self.categories is None:
            raise SourceError(f"{self.file_list} has labels; give the file of their names, too, with --categories")
        names: dict[int, str] = {}
        for line, fields in _numbered_fields(self.categories):
            try:
                if len(fields) != 2:
                    raise RowError("has no number; expected a category and its number, such as '/a/airfield 0'")
                number = _number(fields[1])
                if number in names:
                    raise RowError(f"has the number {number}, as {names[number]!r} has; expected different ones")
                if fields[0] in names.values():
                    raise RowError(f"names the category {fields[0]!r} again; expected each name once")
                names[number] = fields[0]
            except RowError as error:
                raise SourceError(f"{self.categories}, line {line} {error}") from None
        if not names:
            raise SourceError(f"{self.categories} lists no categories; expected lines such as '/a/airfield 0'")
        if missing := [number for number in range(len(names)) if number not in names]:
            raise SourceError(f"{self.categories} has no category {missing[0]}; expected all from 0 to {max(names)}")
        return tuple(names[number] for number in range(len(names)))


def _numbered_fields(file: str) -> Iterator[tuple[int, list[str]]]:
    # Of each line that is not blank its number, and its path and label, or its path alone.
    with open_file(file) as opened, named_errors(file):
        lines = TextLines(opened, file)
        for text in lines:
            if fields := text.rsplit(maxsplit=1):
                yield lines.number, [fields[0].removeprefix("/"), *fields[1:]]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise RowError(f"ends in {text!r}; expected the number of a category, from 0 on")
    return int(text)
