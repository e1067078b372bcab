"""What results.json says beside the figures: which model it was, and how single classes fare.

It is enough to find out what a number is of when the files have moved: a fingerprint of the weights, and of a run the
whole of its recipe.json.
"""

import hashlib
import os
from collections.abc import Sequence

import keras
import numpy as np

from keras_mae.evaluation.classification import Answers, confusion, per_class
from keras_mae.training.initial_weights import fingerprint

DENSE_CLASSES = 100  # up to so many the confusion matrix is in the JSON


def describe_model(path: str | os.PathLike, model, classes: Sequence[str], run: dict | None) -> dict:
    """The part of results.json that says what was measured.

    Args:
        path: where the model was loaded from.
        model: a classifier, or an encoder.
        classes: names of the classes.
        run: recipe.json of the run that it comes from; None: unknown.
    """
    encoder = getattr(model, "encoder", model)
    return {
        "model": str(path),
        "model_fingerprint": fingerprint(model),
        "structure": {
            "image_size": list(encoder.image_size),
            "patch_size": encoder.patch_size,
            "channels": encoder.channels,
            "embed_dim": encoder.embed_dim,
            "depth": encoder.depth,
            "num_heads": encoder.num_heads,
            "num_classes": len(classes),
        },
        "classes_fingerprint": hashlib.sha256("\n".join(classes).encode()).hexdigest(),
        "precision": model.dtype_policy.name,
        "keras": keras.__version__,
        "run": run,
    }


def describe_classes(answers: Answers, names: Sequence[str]) -> tuple[dict, np.ndarray | None]:
    """The part of results.json about single classes, and the confusion matrix that goes into a file of its own.

    Args:
        answers: of all images of a split.
        names: of the model's classes.

    Returns:
        `per_class`, with up to `DENSE_CLASSES` classes `confusion`: for each class the images taken for each class;
        and, with more classes, the rows of `classification.confusion`, else None.
    """
    rows, described = confusion(answers), {"per_class": per_class(answers, names)}
    if len(names) > DENSE_CLASSES:
        return described, rows.astype(np.int32)
    table = np.zeros((len(names), len(names)), np.int64)
    table[rows[:, 0], rows[:, 1]] = rows[:, 2]
    return {**described, "confusion": table.tolist()}, None
