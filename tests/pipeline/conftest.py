"""Small shard sets to read."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.manifest import ShardSet, Split, write_manifest
from pipeline.sources import Item, Listing
from pipeline.writing import write_shard


class ImagesInMemory:
    """A source of encoded images that are in memory already."""

    name = "memory"

    def __init__(self, images: list[bytes], labels: list[int] | None):
        self.images = images
        labels = [None] * len(images) if labels is None else labels
        self.items = [
            Item(str(number), len(image), label)
            for number, (image, label) in enumerate(zip(images, labels, strict=True))
        ]

    def scan(self) -> Listing:
        return Listing(tuple(self.items), None, ())

    def read(self, item: Item) -> bytes:
        return self.images[int(item.path)]


def encode(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    """Pixels, uint8 (H, W) or (H, W, C), as an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def write_shard_set(folder, images, *, shard_samples, labels=None, classes=None, split="train") -> ShardSet:
    """Writes images, in the given order, as one split with shards of the given numbers of samples."""
    source = ImagesInMemory(images, labels)
    assert sum(shard_samples) == len(images)
    starts = np.cumsum([0, *shard_samples])
    shards = tuple(
        write_shard(folder, split, number, int(start), source.items[start : start + count], source)
        for number, (start, count) in enumerate(zip(starts[:-1], shard_samples, strict=True))
    )
    shard_set = ShardSet(str(folder), classes, {split: Split(split, len(images), shards, {})})
    write_manifest(shard_set)
    return shard_set


@pytest.fixture(scope="session")
def numbered_set(tmp_path_factory) -> ShardSet:
    """30 grey PNGs of 8x8 pixels in 11 shards; every pixel of image i is 5 * i, its label i % 3."""
    images = [encode(np.full((8, 8), 5 * number, np.uint8)) for number in range(30)]
    return write_shard_set(
        tmp_path_factory.mktemp("numbered"),
        images,
        shard_samples=[3, 2, 4, 1, 3, 3, 3, 5, 2, 3, 1],
        labels=[number % 3 for number in range(30)],
        classes=("a", "b", "c"),
    )
