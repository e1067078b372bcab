"""The names of a classifier's classes, in the order of its outputs: `classes.json` beside the model.

They lie in a model's folder, and inside a SavedModel, which may be copied alone.
"""

import json
import os
import pathlib
from collections.abc import Sequence

from keras_mae.training.atomic import write_text

NAME = "classes.json"


class ClassNamesError(ValueError):
    """The list of names is damaged."""


def write_class_names(folder: pathlib.Path, names: Sequence[str]) -> None:
    """Writes `classes.json`, also into a `saved_model` in the folder, if there is one."""
    text = json.dumps(list(names), indent=0) + "\n"
    for place in (folder, folder / "saved_model" / "assets.extra"):
        if place.is_dir():
            write_text(place / NAME, text)


def read_class_names(path: str | os.PathLike) -> list[str] | None:
    """The names of the classes of the model at `path`, as `load_model` takes it. None: nothing says them.

    Raises:
        ClassNamesError: the list is damaged.
    """
    path = pathlib.Path(path)
    folders = (path, path / "export", path / "assets.extra") if path.is_dir() else (path.parent,)
    for file in (folder / NAME for folder in folders):
        if file.is_file():
            try:
                names = json.loads(file.read_text())
            except ValueError as error:
                raise ClassNamesError(f"{file} is damaged: {error}") from None
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ClassNamesError(f"{file} is damaged: expected a list of names")
            return names
    return None
