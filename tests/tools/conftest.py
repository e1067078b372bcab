"""A folder of small images to make shards from."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def save_images(folder: Path, names, seed: int = 0) -> Path:
    """Saves noise as images of different sizes; the format follows the suffix."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8 + number % 5, 9, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def images(tmp_path) -> Path:
    """30 images in 3 classes of 15, 10 and 5, of all formats and depths of folders."""
    suffixes = ["jpg", "JPEG", "png", "webp"]
    counts = {"cat": 15, "dog": 10, "emu": 5}
    names = [
        f"{name}/{'deeper/' if i % 3 == 0 else ''}{i}.{suffixes[i % 4]}" for name, n in counts.items() for i in range(n)
    ]
    return save_images(tmp_path / "images", names)


@pytest.fixture
def flat_images(tmp_path) -> Path:
    """8 images without classes."""
    return save_images(tmp_path / "flat", [f"{i}.png" for i in range(8)], seed=1)
