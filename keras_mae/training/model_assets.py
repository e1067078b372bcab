"""Files that say more about a model than its weights do, such as its card: beside it, and inside its SavedModel.

A SavedModel has its own copy because it may be copied alone.
"""

import os
import pathlib

from keras_mae.training.atomic import write_text

INSIDE = "assets.extra"


def write_asset(folder: pathlib.Path, name: str, text: str) -> None:
    """Writes the file into a model's folder, also into a `saved_model` in the folder, if there is one.

    Args:
        folder: of the model; of a SavedModel itself, the file goes where its assets are.
        name: of the file.
        text: its content.
    """
    for place in (folder, folder / "saved_model"):
        inside = place / INSIDE if (place / "saved_model.pb").exists() else place
        if inside.is_dir():
            write_text(inside / name, text)


def find_asset(path: str | os.PathLike, name: str) -> pathlib.Path | None:
    """The file of the model at `path`: a model's file, an export folder, a run folder or a SavedModel. None: none."""
    path = pathlib.Path(path)
    folders = (path, path / "export", path / INSIDE) if path.is_dir() else (path.parent,)
    return next((folder / name for folder in folders if (folder / name).is_file()), None)
