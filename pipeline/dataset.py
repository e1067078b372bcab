"""`load`: shards to batches, the one public entry of the pipeline."""

import operator
import os
from collections.abc import Mapping

import tensorflow as tf

from pipeline.batching import batch_samples
from pipeline.manifest import ShardSet, Split, load_manifest
from pipeline.order import ManifestOrder, ShuffledOrder
from pipeline.reading import read_samples
from pipeline.views import draw_uniform, eval_view, pretrain_view, sample_seed, train_view

VIEWS = ("pretrain", "train", "eval")
MIN_AREA = {"pretrain": 0.2, "train": 0.08}
# Features that every batch has; a noise cannot take their names.
RESERVED_FEATURES = ("image", "index")


def load(
    shards: str | os.PathLike | ShardSet,
    *,
    view: str,
    batch_size: int,
    image_size: int | tuple[int, int],
    split: str | None = None,
    channels: int = 3,
    seed: int = 0,
    start_step: int = 0,
    noise: Mapping[str, int] | None = None,
    min_area: float | None = None,
    flip: bool = True,
    resize_size: int | None = None,
    prefetch: int | None = None,
) -> tf.data.Dataset:
    """Batches of one split of a shard set.

    Training batches (views "pretrain" and "train") are cut from the endless sequence epoch 0, epoch 1, ...,
    each of which holds every sample once, shuffled: batch t is the `batch_size` samples from position
    t * batch_size on. Evaluation is one pass in the manifest's order, its last batch filled up with copies
    that weigh 0.

    Everything random about a sample is a function of (seed, epoch, index of the sample). So the same
    arguments give the same batches, and `start_step=t` begins with batch t of what would begin at 0.

    Args:
        shards: folder of a shard set (`tools.make_shards` writes one), or the set itself.
        view: "pretrain" (random crops, no labels), "train" (random crops, labels) or "eval" (centre crops).
        batch_size: samples in a global batch, over all replicas.
        image_size: side in pixels, or (height, width).
        split: name; None takes the only one.
        channels: 1 (grey) or 3 (RGB).
        seed: of the run, from 0 to 2**63 - 1; unused in evaluation but for `noise`.
        start_step: number of batches to leave out; seeks, and reads no more than one block for it. 0 in
            evaluation.
        noise: per name of a feature, a number of draws: each sample gets as many uniform draws from [0, 1)
            under that name, such as {"noise": 196} for masks. They depend on the name, not on each other. In
            evaluation they are those of epoch 0.
        min_area: lower bound of the random crop's share of the image's area, above 0 and up to 1. None: .2
            in pre-training and .08 in training, as in the paper. Not for evaluation.
        flip: whether training images are flipped horizontally with probability .5. Unused in evaluation.
        resize_size: pixels; the short side of an image before its centre is taken (see `views.eval_view`).
            None: 256/224 of the short side of `image_size` up to 224, and just that side above. Only for
            evaluation.
        prefetch: batches kept ready; None lets tf.data choose. A batch takes B * H * W * C bytes.

    Returns:
        Dataset of `features` (view "pretrain"), `(features, labels)` ("train") or `(features, labels,
        weights)` ("eval"). `features` is a dict: `image` uint8 (B, H, W, C), `index` int64 (B,), number of
        the sample in the split, and each noise float32 (B, draws). `labels` int32 (B,), in evaluation -1
        where unknown; `weights` float32 (B,), 1 or 0. The cardinality is infinite in training, and the number
        of batches in evaluation.

    Raises:
        ManifestError: the shard set or the split is missing or damaged.
        ValueError: an argument is out of its range, a training view of labels without labels, an empty split.
    """
    batch_size = _whole("batch_size", batch_size, minimum=1)
    start_step = _whole("start_step", start_step, minimum=0)
    seed = _whole("seed", seed, minimum=0)
    size = _size(image_size)
    noise = dict(noise or {})
    _check_choices(view, channels, noise)
    _check_view_options(view, start_step, min_area, resize_size, min(size))
    shard_set = shards if isinstance(shards, ShardSet) else load_manifest(shards)
    chosen = shard_set.split(split)
    _check_split(shard_set, chosen, view)
    if view == "eval":
        resize_size = default_resize_size(size) if resize_size is None else resize_size
        dataset = _evaluation(shard_set, chosen, batch_size, size, channels, seed, noise, resize_size)
    else:
        make_view = pretrain_view if view == "pretrain" else train_view
        min_area = MIN_AREA[view] if min_area is None else min_area

        def make_image(encoded, seed):
            return make_view(encoded, seed, size, channels=channels, min_area=min_area, flip=flip)

        dataset = _training(shard_set, chosen, view, batch_size, seed, start_step, noise, make_image)
    dataset = dataset.prefetch(tf.data.AUTOTUNE if prefetch is None else _whole("prefetch", prefetch, minimum=1))
    options = tf.data.Options()
    options.deterministic = True
    # Replica r of R takes the r-th slice of each global batch; files are no unit of work here.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)


def default_resize_size(image_size: tuple[int, int]) -> int:
    """Short side, in pixels, to which evaluation resizes: 256/224 of it up to 224, just it above."""
    short = min(image_size)
    return round(short * 256 / 224) if short <= 224 else short


def _training(shard_set, split, view, batch_size, seed, start_step, noise, make_image):
    order = ShuffledOrder([shard.samples for shard in split.shards], seed)
    samples = read_samples(
        shard_set,
        split,
        order,
        start_position=start_step * batch_size,
        labels="required" if view == "train" else "ignored",
    )

    def prepare(sample):
        own_seed = sample_seed(seed, sample["epoch"], sample["index"])
        features = {"image": make_image(sample["encoded"], own_seed), "index": sample["index"]}
        features |= _draw_noises(own_seed, noise)
        return (features, sample["label"]) if view == "train" else features

    dataset = batch_samples(samples, prepare, split=split, batch_size=batch_size, drop_remainder=True)
    return dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def _evaluation(shard_set, split, batch_size, size, channels, seed, noise, resize_size):
    order = ManifestOrder([shard.samples for shard in split.shards])
    samples = read_samples(shard_set, split, order, labels="optional" if shard_set.classes else "ignored")

    def prepare(sample):
        image = eval_view(sample["encoded"], size, resize_size, channels=channels)
        own_seed = sample_seed(seed, 0, sample["index"])
        features = {"image": image, "index": sample["index"]} | _draw_noises(own_seed, noise)
        return features, sample["label"], 1.0

    dataset = batch_samples(samples, prepare, split=split, batch_size=batch_size, drop_remainder=False)
    dataset = dataset.map(lambda *batch: _pad(batch, batch_size), num_parallel_calls=1)
    return dataset.apply(tf.data.experimental.assert_cardinality(-(-split.samples // batch_size)))


def _draw_noises(seed, noise):
    return {name: draw_uniform(seed, f"noise/{name}", (length,)) for name, length in noise.items()}


def _pad(batch, batch_size):
    """Fills a batch up to `batch_size` with its last sample, at weight 0."""
    features, labels, weights = batch
    missing = batch_size - tf.shape(weights)[0]

    def fill(column):
        return tf.concat([column, tf.repeat(column[-1:], missing, axis=0)], axis=0)

    def filled():
        return tf.nest.map_structure(fill, (features, labels)) + (tf.concat([weights, tf.zeros([missing])], axis=0),)

    padded = tf.cond(missing > 0, filled, lambda: (features, labels, weights))
    return tf.nest.map_structure(lambda column: tf.ensure_shape(column, [batch_size, *column.shape[1:]]), padded)


def _whole(name: str, value: int, *, minimum: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < minimum:
        raise ValueError(f"`{name}` must be an integer of at least {minimum}. Received: {value!r}")
    return number


def _size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    sides = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(sides) != 2:
        raise ValueError(f"`image_size` must be one side or (height, width), in pixels. Received: {image_size}")
    return tuple(_whole("image_size", side, minimum=1) for side in sides)


def _check_choices(view: str, channels: int, noise: Mapping[str, int]) -> None:
    if view not in VIEWS:
        raise ValueError(f"`view` must be one of {', '.join(VIEWS)}. Received: {view!r}")
    if channels not in (1, 3):
        raise ValueError(f"`channels` must be 1 (grey) or 3 (RGB). Received: {channels!r}")
    for name, length in noise.items():
        if not isinstance(name, str) or name in RESERVED_FEATURES or not name:
            raise ValueError(
                f"A name in `noise` must be a text other than {', '.join(RESERVED_FEATURES)}. Received: {name!r}"
            )
        _whole(f"noise[{name!r}]", length, minimum=1)


def _check_view_options(
    view: str, start_step: int, min_area: float | None, resize_size: int | None, short: int
) -> None:
    if view == "eval":
        if start_step:
            raise ValueError(f"`start_step` must be 0 for view 'eval', a single pass. Received: {start_step}")
        if min_area is not None:
            raise ValueError(f"`min_area` is for random crops, not for view 'eval'. Received: {min_area}")
        if resize_size is not None and _whole("resize_size", resize_size, minimum=1) < short:
            raise ValueError(
                f"`resize_size` must be at least {short}, the short side of `image_size`. Received: {resize_size}"
            )
        return
    if resize_size is not None:
        raise ValueError(f"`resize_size` is for view 'eval', not for {view!r}. Received: {resize_size}")
    if min_area is not None and not 0 < min_area <= 1:
        raise ValueError(f"`min_area` must be above 0 and at most 1. Received: {min_area}")


def _check_split(shard_set: ShardSet, split: Split, view: str) -> None:
    if split.samples == 0:
        raise ValueError(f"Split {split.name!r} of {shard_set.root} holds no samples; there is nothing to read")
    if view == "train" and shard_set.classes is None:
        raise ValueError(
            f"View 'train' needs labels, but {shard_set.root} was made without classes; "
            "use view='pretrain', or make the shards again from a folder with one folder per class"
        )
