"""Shard sets that several tests read."""

import numpy as np
import pytest
from fixtures.shard_sets import encode, write_shard_set

from pipeline.manifest import ShardSet


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
