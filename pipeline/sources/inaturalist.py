"""The images of an iNaturalist competition, 2017 to 2021: folders of images, and one JSON file for each split."""

import collections
import json
import os
from collections.abc import Sequence
from typing import Any

from pipeline.locations import SourceError, named_errors, open_file
from pipeline.sources.base import Item, Listing, is_text
from pipeline.sources.label_column import LabelColumn
from pipeline.sources.list_files import RowError
from pipeline.sources.lists import ListedImages, MissingFile, MissingFiles


class INaturalistSource:
    """The images that an annotation file lists, sorted by path, with the category of each.

    The file is in COCO's style: {"images": [{"id", "file_name", ...}, ...], "annotations": [{"image_id",
    "category_id", ...}, ...], "categories": [{"id", "name", ...}, ...]}. A test split without annotations is read
    without labels. Labels follow the category ids. Classes have the categories' names (numbers in 2018, where names
    were hidden); a name that two categories share gets the id before it: "17 Turdus". The sample's `json` holds
    the image's id, by which submissions and further tables of the competitions go.

    Args:
        root: folder or URL that the paths in the file are relative to.
        annotations: path or URL of the file, such as train2019.json.
    """

    name = "inaturalist"

    def __init__(self, root: str | os.PathLike, annotations: str | os.PathLike):
        self.root, self.annotations = os.fspath(root), os.fspath(annotations)

    def scan(self) -> Listing:
        """Lists the images; see `Source.scan`."""
        entries = _Entries(self.annotations)
        labels = entries.labels()
        self._images = ListedImages(self.root, labels and LabelColumn(labels.classes))
        order = sorted(range(len(entries.files)), key=entries.files.__getitem__)
        self._ids = [entries.ids[position] for position in order]
        missing = MissingFiles()
        for position, image in zip(order, self._ids, strict=True):
            try:
                self._images.add(entries.files[position], labels and labels.of_image(image), {"id": image})
            except MissingFile as error:
                missing.add(f"{self.annotations}: image {image!r} {error}", len(self._images))
            except RowError as error:
                raise SourceError(f"{self.annotations}: image {image!r} {error}") from None
        missing.refuse(len(self._images))
        return self._images.finish()

    def items(self, positions: Sequence[int]) -> list[Item]:
        """The images at some positions; see `Source.items`."""
        return [self._images.item(position, {"id": self._ids[position]}) for position in positions]


class _Labels:
    # Classes in the order of category ids, and the label of each image.

    def __init__(self, names: dict[int, str], category_of: dict[int | str, int]):
        ids = sorted(names)
        count = collections.Counter(names.values())
        self.classes = tuple(names[i] if count[names[i]] == 1 else f"{i} {names[i]}" for i in ids)
        self._rank = {category: rank for rank, category in enumerate(ids)}
        self._category_of = category_of

    def of_image(self, image: int | str) -> int:
        if image not in self._category_of:
            raise RowError("has no annotation; expected one for each image, or none at all")
        category = self._category_of[image]
        if category not in self._rank:
            raise RowError(f"has category {category}, which is not among the {len(self._rank)} categories")
        return self._rank[category]


class _Entries:
    # What is used of an annotation file. Entries are taken out while the JSON is parsed: 2.7 million images and as
    # many annotations, as in 2021, would otherwise be 5 million dicts and take gigabytes.

    def __init__(self, file: str):
        self._file = file
        self.files: list[str] = []
        self.ids: list[int | str] = []
        self.category_of: dict[int | str, int] = {}
        self.categories = self._parse()
        if not self.ids:
            self._refuse("lists no images; expected at least one")
        ids = set(self.ids)
        if len(ids) != len(self.ids):
            image = next(image for image, count in collections.Counter(self.ids).items() if count > 1)
            self._refuse(f"lists image {image!r} twice; expected different ids")
        if stray := [image for image in self.category_of if image not in ids]:
            self._refuse(f"annotates image {stray[0]!r}, which it does not list")

    def labels(self) -> _Labels | None:
        """None in a file without annotations."""
        if not self.category_of:
            return None
        names = {}
        for entry in self.categories:
            category, name = (entry.get(key) for key in ("id", "name")) if type(entry) is dict else (None, None)
            if type(category) is not int or type(name) not in (str, int):
                self._refuse(f"has the category {entry!r}; expected an object with a numeric id, and a name")
            if not is_text(str(name)):
                self._refuse(f"has the category {entry!r}, whose name is no valid text")
            if category in names:
                self._refuse(f"has two categories {category}; expected different ids")
            names[category] = str(name)
        return _Labels(names, self.category_of)

    def _parse(self) -> list[Any]:
        with open_file(self._file) as file, named_errors(self._file):
            try:
                content = json.loads(file.read(), object_hook=self._take)
            except UnicodeDecodeError as error:
                self._refuse(f"is not UTF-8: {error.reason} at byte {error.start}")
            except (json.JSONDecodeError, RecursionError) as error:
                self._refuse(f"is no JSON: {error}")
        if type(content) is not dict or type(content.get("images")) is not list:
            self._refuse('is no annotation file of iNaturalist; expected {"images": [...], ...}')
        categories = content.get("categories")
        return categories if type(categories) is list else []

    def _take(self, entry: dict[str, Any]) -> dict[str, Any] | None:
        if "file_name" in entry:
            self.files.append(self._checked(entry, "file_name", str))
            self.ids.append(self._checked(entry, "id", int, str))
        elif "image_id" in entry:
            image = self._checked(entry, "image_id", int, str)
            category = self._checked(entry, "category_id", int)
            # Boxes of 2017 repeat the category for each animal of an image.
            if self.category_of.setdefault(image, category) != category:
                self._refuse(f"gives image {image!r} two categories, {self.category_of[image]} and {category}")
        else:
            return entry
        return None

    def _checked(self, entry: dict[str, Any], key: str, *kinds: type) -> Any:
        if type(entry.get(key)) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            self._refuse(f"has the entry {entry!r}; expected {key!r} in it, of type {expected}")
        return entry[key]

    def _refuse(self, problem: str) -> None:
        raise SourceError(f"{self._file} {problem}")
