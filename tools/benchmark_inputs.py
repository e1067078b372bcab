"""What the benchmarks of the sharder work on: photographs in class folders, and a long list of tiny images."""

import collections
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.locations import read_location
from pipeline.sources import FolderSource

CLASSES = 100
# Different photographs to make; further files repeat them.
MADE_PHOTOGRAPHS = 200
WIDTH, HEIGHT = 500, 375
TINY_FILES = 1000


@dataclasses.dataclass(frozen=True)
class Photographs:
    """Files of photographs, in folders of classes.

    Attributes:
        folder: that holds the folders of classes, and nothing else.
        samples: number of files.
        num_bytes: of all files.
        digests: sha256 of each file's bytes, with the number of files that have it.
        origin: where they come from, for the reader of the results.
    """

    folder: Path
    samples: int
    num_bytes: int
    digests: collections.Counter
    origin: str


def copy_photographs(source: str, samples: int, folder: Path) -> Photographs:
    """Copies exactly `samples` photographs of a folder: each in turn, or evenly spaced ones of too many.

    Raises:
        SourceError: `source` is no folder of images.
    """
    images = FolderSource(source)
    available = len(images.scan())
    positions = [i % available if available < samples else i * available // samples for i in range(samples)]
    files = ((read_location(item.image), Path(item.name).suffix) for item in images.items(positions))
    return _save(files, folder, f"{min(available, samples):,} different ones of --input")


def make_photographs(samples: int, folder: Path) -> Photographs:
    """Writes `samples` JPEGs of smooth noise with grain, the same in every run with one version of Pillow.

    They have the size, bytes (45 KB on average, quality 90) and time to decode of small photographs.
    """
    different = [(_photograph(number), ".jpg") for number in range(min(samples, MADE_PHOTOGRAPHS))]
    files = (different[i % len(different)] for i in range(samples))
    return _save(files, folder, f"{len(different):,} different ones of smooth noise, {WIDTH}x{HEIGHT}, made from seeds")


def _save(files: Iterator[tuple[bytes, str]], folder: Path, origin: str) -> Photographs:
    # `files` are pairs of contents and suffix.
    digests, num_bytes = collections.Counter(), 0
    for number, (data, suffix) in enumerate(files):
        path = folder / f"class{number % CLASSES:03d}" / f"{number:06d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        digests[hashlib.sha256(data).hexdigest()] += 1
        num_bytes += len(data)
    return Photographs(folder, digests.total(), num_bytes, digests, origin)


def _photograph(seed: int) -> bytes:
    # Octaves of noise, the coarse ones strong, as in nature; grain decides the bytes.
    rng = np.random.default_rng(seed)
    pixels = np.full((HEIGHT, WIDTH, 3), 128, np.float32)
    for cells in (2, 4, 8, 16, 32, 64):
        coarse = rng.normal(0, 120 / cells**0.9, (3, cells * 3 // 4 + 1, cells + 1)).astype(np.float32)
        channels = [Image.fromarray(channel).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC) for channel in coarse]
        pixels += np.stack(channels, axis=-1)
    pixels += rng.normal(0, rng.uniform(1, 9), (HEIGHT, WIDTH, 1))
    return _encode(pixels.clip(0, 255).astype(np.uint8), "JPEG", quality=90)


def _encode(pixels: np.ndarray, format: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def write_tiny_list(samples: int, folder: Path) -> Path:
    """Writes 1,000 images of 100 to 700 bytes, PNG and JPEG, and a list with `samples` rows that name them.

    Returns:
        The list, JSON lines: path of the image, a label and a caption.
    """
    rng = np.random.default_rng(0)
    names = []
    for number in range(TINY_FILES):
        side = 4 + number % 9
        pixels = rng.integers(0, 256, (side, side, 3 - number % 3 // 2 * 2), dtype=np.uint8).squeeze()
        kind = ("PNG", "JPEG")[number % 2]
        names.append(f"tiny/{number:03d}.{kind.lower()}")
        path = folder / names[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encode(pixels, kind))
    file = folder / "list.jsonl"
    with file.open("w") as rows:
        for number in range(samples):
            row = {"path": names[number % TINY_FILES], "label": number % CLASSES, "caption": f"sample {number}"}
            rows.write(json.dumps(row) + "\n")
    return file
