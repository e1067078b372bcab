"""The labels of a list: positions in the classes, or names of classes."""

import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pipeline.locations import SourceError
from pipeline.sources.base import is_text
from pipeline.sources.list_files import RowError

# A column of such numbers is something else, and would make as many classes.
MAX_CLASSES = 1_000_000
WITHOUT_LABELS = ", or give an empty --label_column= to read the list without labels"


def check_classes(classes: Iterable[str]) -> tuple[str, ...]:
    """The classes as a tuple.

    Raises:
        SourceError: there is none, or two have one name.
    """
    classes = tuple(classes)
    if not classes:
        raise SourceError("classes is empty; expected at least one name")
    if len(set(classes)) != len(classes):
        twice = next(name for number, name in enumerate(classes) if name in classes[:number])
        raise SourceError(f"classes name {twice!r} twice; expected different names")
    return classes


class LabelColumn:
    """The labels of a list: all of them positions in the classes, or all names of classes.

    Args:
        classes: names of the classes; None to find them in the labels.
    """

    def __init__(self, classes: Sequence[str] | None):
        self._classes = classes
        self._position_of = None if classes is None else {name: i for i, name in enumerate(classes)}
        self._codes: dict[str | int, int] = {}  # positions; of names without given classes, in order of appearance
        self._column = array.array("i")
        self._are_names: bool | None = None

    def append(self, label: Any) -> None:
        """Adds the label of the next row: an int, a class name, or digits.

        Raises:
            RowError: it is missing, no label, out of range, unknown, or not of the kind of the others.
        """
        code = self._codes.get(label) if type(label) in (str, int) else None
        if code is None:
            code = self._codes[label] = self._number(label)
        self._column.append(code)

    def finish(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """int32 labels of all rows, and the classes."""
        column = np.frombuffer(self._column, np.int32)
        if self._classes is not None:
            return column, tuple(self._classes)
        if not self._are_names:
            return column, tuple(map(str, range(column.max() + 1)))
        names = sorted(self._codes)
        ranks = np.empty(len(names), np.int32)
        ranks[[self._codes[name] for name in names]] = np.arange(len(names))
        return ranks[column], tuple(names)

    def _number(self, label: Any) -> int:
        if label is None or label == "":
            raise RowError(f"has no label; label all rows{WITHOUT_LABELS}")
        if type(label) not in (str, int):
            raise RowError(f"has the label {label!r}; expected a whole number or the name of a class")
        if type(label) is str and not is_text(label):
            raise RowError(f"has the label {label!r}, which is no valid text")
        is_known = self._position_of is not None and label in self._position_of
        is_name = is_known or not (type(label) is int or _is_number(label))
        if self._are_names is None:
            self._are_names = is_name
        elif self._are_names != is_name:
            kinds = ("numbers", "a class name") if is_name else ("class names", "a number")
            raise RowError(f"has the label {label!r}, {kinds[1]}, and those before are {kinds[0]}; use one kind")
        if not is_name:
            return self._check_position(label)
        if self._position_of is None:
            return len(self._codes)
        if not is_known:
            raise RowError(f"has the label {label!r}, which is none of the {len(self._classes)} classes")
        return self._position_of[label]

    def _check_position(self, label: str | int) -> int:
        count = MAX_CLASSES if self._classes is None else len(self._classes)
        digits = str(label).lstrip("0") or "0"
        if not digits.isdecimal() or len(digits) > len(str(count)) or int(digits) >= count:
            raise RowError(f"has the label {label!r}; expected a whole number from 0 to {count - 1}, or class names")
        return int(digits)


def _is_number(text: str) -> bool:
    # Also "-1" and "2.0", which are mistakes more likely than names of classes.
    return text.isascii() and text.removeprefix("-").replace(".", "", 1).isdecimal()
