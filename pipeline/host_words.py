"""Images of 16 bits in the memory of bytes that `BatchMaker` fills: two bytes side by side are a number.

This module imports no TensorFlow.
"""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from pipeline.host_batches import Batch

View = Callable[[memoryview, np.ndarray, np.ndarray], None]


def byte_shape(image_shape: tuple[int, int, int], dtype: str) -> tuple[int, int, int]:
    """The shape, in bytes, of an image of (height, width, channels) numbers."""
    height, width, channels = image_shape
    return height, width, channels * np.dtype(dtype).itemsize


def into_bytes(view: View, dtype: str) -> View:
    """A view that fills the bytes of an image, for one that fills its numbers."""
    if dtype == "uint8":
        return view
    return lambda encoded, seed, out: view(encoded, seed, out.view(dtype))


def from_bytes(batches: Iterator[Batch], dtype: str) -> Iterator[Batch]:
    """Batches whose images are numbers, for those whose images are bytes."""
    return batches if dtype == "uint8" else _numbers(batches, dtype)


def _numbers(batches: Iterator[Batch], dtype: str) -> Iterator[Batch]:
    with contextlib.closing(batches):
        for batch in batches:
            images = batch.features["image"].view(dtype)
            yield batch._replace(features={**batch.features, "image": images})
