"""Which classes of a model a data set is about. Imports no TensorFlow."""

from typing import NamedTuple

import numpy as np


class EvaluationError(ValueError):
    """The data or the model gives nothing that could be evaluated."""


class ClassMap(NamedTuple):
    """How the classes of a data set are found among those of a model; both are numbered from 0.

    Attributes:
        columns: int64 (number of classes that are compared,): the model's numbers of them.
        positions: int64 (number of the data set's classes,): where each is among `columns`.
    """

    columns: np.ndarray
    positions: np.ndarray
