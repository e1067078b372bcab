"""What each step of the host engine costs by itself: read, decode, crop and resize, augment.

All are measured in one thread on the same samples, in milliseconds of a core for each image; a step finds in the cache
what the step before it has left there, as in use. What is missing to the cost of the whole is batching: planning,
handing samples to threads, and giving batches to TensorFlow.
"""

import time

import numpy as np

from pipeline import augment_host
from pipeline.augment import RandAugment, parse_rand_augment
from pipeline.crop_resize import CROP_TRIES, choose_crop, crop_resize, workspace_bytes
from pipeline.host_decode import decode_image
from pipeline.host_reading import BlockLoader, LoadedBlock
from pipeline.manifest import ShardSet, Split
from pipeline.order import Block

CHANNELS = 3


def measure_stages(
    shard_set: ShardSet, split: Split, *, samples: int, image_size: int, min_area: float, rand_augment: str | None
) -> dict[str, float]:
    """Milliseconds of a core for an image, by step: `read`, `decode`, `crop_resize`, `augment`.

    Args:
        shard_set: where the split lies.
        split: its first samples are taken.
        samples: how many, at most those of the first shard.
        image_size: side of the result in pixels.
        min_area: lower bound of the random crop's share of the image's area.
        rand_augment: policy in timm's notation; None: augmenting costs nothing, since the flip is a part of resizing.
    """
    block, seconds_to_read = _read(shard_set, split, samples)
    policy = parse_rand_augment(rand_augment) if rand_augment else None
    _prepare_images(block, 1, image_size, min_area, policy)  # compiles
    seconds = _prepare_images(block, len(block.index), image_size, min_area, policy)
    return {name: 1000 * value / len(block.index) for name, value in {"read": seconds_to_read, **seconds}.items()}


def _read(shard_set: ShardSet, split: Split, samples: int) -> tuple[LoadedBlock, float]:
    rows = np.arange(min(samples, split.shards[0].samples))
    block = Block(epoch=0, shards=np.zeros(1, np.int64), slot=np.zeros_like(rows), row=rows, index=rows)
    loader = BlockLoader(shard_set, split)
    loader.load(block)  # its index is parsed once, its bytes come into the system's cache
    start = time.thread_time()
    loaded = loader.load(block)
    return loaded, time.thread_time() - start


def _prepare_images(
    block: LoadedBlock, count: int, image_size: int, min_area: float, policy: RandAugment | None
) -> dict[str, float]:
    # Seconds of a core, by step. Draws are not those of `pipeline.load`, but of the same distributions.
    rng = np.random.default_rng(0)
    box, out = np.empty(4, np.int64), np.empty((image_size, image_size, CHANNELS), np.uint8)
    workspace = np.empty(0, np.uint8)
    moments = np.empty((count, 4))  # of each image: before it, and after each of three steps
    augment = None if policy is None else augment_host.augmentation(policy, "rand_augment")
    for sample in range(count):
        moments[sample, 0] = time.thread_time()
        image = decode_image(block.encoded(sample), CHANNELS)
        moments[sample, 1] = time.thread_time()
        choose_crop(image.shape[0], image.shape[1], rng.random(4 * CROP_TRIES), min_area, box)
        size = workspace_bytes(int(box[2]), int(box[3]), CHANNELS, image_size, image_size)
        if size > workspace.size:
            workspace = np.empty(size, np.uint8)
        crop_resize(image, box, bool(rng.integers(2)), workspace, out)
        moments[sample, 2] = time.thread_time()
        if augment is not None:
            augment(np.array((sample, 0)), out)
        moments[sample, 3] = moments[sample, 2] if augment is None else time.thread_time()
    return dict(zip(("decode", "crop_resize", "augment"), np.diff(moments).sum(axis=0).tolist(), strict=True))
