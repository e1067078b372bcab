"""The file `results.json`: written whole or not at all, and read back. Imports neither Keras nor TensorFlow."""

import io
import json
import os
import pathlib

import numpy as np

from keras_mae.training.atomic import write_text

FORMAT = "keras_mae results"
NAME = "results.json"


class ResultsError(ValueError):
    """A file that does not hold results."""


def write_results(path: str | os.PathLike, results: dict, confusion_rows: np.ndarray | None = None) -> None:
    """Writes results.json whole or not at all, and before it `NAME-confusion.npy` beside it where there are rows.

    Raises:
        OSError: the folder cannot be written.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {"format": FORMAT, **results}
    if confusion_rows is not None:
        file = path.with_name(f"{path.stem}-confusion.npy")
        buffer = io.BytesIO()
        np.save(buffer, confusion_rows)
        partial = file.with_name(file.name + ".partial")
        partial.write_bytes(buffer.getvalue())
        os.replace(partial, file)
        results["confusion"] = {"file": file.name, "columns": ["class", "predicted class", "images"]}
    write_text(path, json.dumps(results, indent=1, allow_nan=False) + "\n")


def read_results(path: str | os.PathLike) -> dict:
    """What `write_results` wrote.

    Raises:
        ResultsError: there is no such file, or it holds something else.
    """
    path = pathlib.Path(path)
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read as results of keras_mae: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ResultsError(f"{path} holds no results of keras_mae.evaluate: its format is not {FORMAT!r}.")
    return content


def is_results(path: str | os.PathLike) -> bool:
    """Whether a path is a file of results."""
    try:
        read_results(path)
    except ResultsError:
        return False
    return True


def results_path(output: str | None, subject: str | os.PathLike, name: str) -> pathlib.Path:
    """Where results go: `output`, or evaluation/NAME/results.json in the folder of the run or beside the model.

    Args:
        output: file; None for the usual one.
        subject: run folder, export folder, SavedModel folder or `.keras` file.
        name: of what is measured.

    Raises:
        ValueError: `output` is a folder.
    """
    if output is not None:
        if pathlib.Path(output).is_dir():
            raise ValueError(f"output names a file, such as {NAME}. Received: the folder {output}")
        return pathlib.Path(output)
    folder = pathlib.Path(subject)
    if folder.is_file() or (folder / "saved_model.pb").exists():
        folder = folder.parent
    return folder / "evaluation" / name / NAME


def earlier_results(path: str | os.PathLike, description: dict) -> dict:
    """Results of the same model, in the same precision and of the same classes, that `path` holds; {} for none."""
    try:
        found = read_results(path)
    except ResultsError:
        return {}
    same = ("model_fingerprint", "precision", "classes_fingerprint")
    return found if all(found.get(name) == description[name] for name in same) else {}
