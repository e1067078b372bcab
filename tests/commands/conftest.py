"""A shard set that the commands train on."""

import numpy as np
import pytest
from fixtures.shard_sets import encode

from pipeline.sources import FolderSource
from tools.shard_plan import ShardOptions
from tools.sharding import make_shards


@pytest.fixture(scope="session")
def halves_set(tmp_path_factory):
    """44 grey images, bright on the left or on the right: splits train (35) and val (9)."""
    folder = tmp_path_factory.mktemp("halves")
    rng = np.random.default_rng(0)
    for number in range(44):
        image = rng.integers(0, 60, (8, 8), dtype="uint8")
        name = ("left", "right")[number % 2]
        image[:, 4 * (number % 2) : 4 * (number % 2) + 4] += 180
        path = folder / "images" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image))
    options = ShardOptions(val_fraction=0.2)
    make_shards(FolderSource(str(folder / "images")), folder / "shards", options, workers=1, log=str)
    return str(folder / "shards")
