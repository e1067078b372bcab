"""The names of a classifier's classes, in the order of its outputs: `classes.json` beside the model.

Written and found by `model_assets`.
"""

import json
import os
import pathlib
from collections.abc import Sequence

from keras_mae.training.model_assets import find_asset, write_asset

NAME = "classes.json"


class ClassNamesError(ValueError):
    """The list of names is damaged."""


def write_class_names(folder: pathlib.Path, names: Sequence[str]) -> None:
    """Writes `classes.json`, also into a `saved_model` in the folder, if there is one."""
    write_asset(folder, NAME, json.dumps(list(names), indent=0) + "\n")


def read_class_names(path: str | os.PathLike) -> list[str] | None:
    """The names of the classes of the model at `path`, as `load_model` takes it. None: nothing says them.

    Raises:
        ClassNamesError: the list is damaged.
    """
    file = find_asset(path, NAME)
    if file is None:
        return None
    try:
        names = json.loads(file.read_text())
    except ValueError as error:
        raise ClassNamesError(f"{file} is damaged: {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ClassNamesError(f"{file} is damaged: expected a list of names")
    return names
