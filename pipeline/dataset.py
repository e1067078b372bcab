"""`load`: shards to batches, the one public entry of the pipeline."""

import os
from collections.abc import Callable, Iterator, Mapping

import tensorflow as tf

from pipeline.argument_checks import sides
from pipeline.augment import ColorJitter, RandAugment, parse_rand_augment
from pipeline.host_batches import Batch
from pipeline.host_engine import batches
from pipeline.load_options import LoadOptions
from pipeline.manifest import ShardSet, load_manifest
from pipeline.order import MAX_STREAMS, SHUFFLE_BLOCK_SHARDS
from pipeline.shard_cache import ShardCache
from pipeline.stats import ReadingStats
from pipeline.until_exit import until_exit
from pipeline.view_options import WITH_LABELS, ViewOptions

CACHE_BYTES = 100 * 10**9
PREFETCH = 2


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
    crop: str = "random",
    resize_size: int | None = None,
    rand_augment: str | RandAugment | None = None,
    color_jitter: ColorJitter | None = None,
    shuffle_block_shards: int = SHUFFLE_BLOCK_SHARDS,
    max_streams: int = MAX_STREAMS,
    host: int = 0,
    num_hosts: int = 1,
    engine: str = "auto",
    num_threads: int | None = None,
    prefetch: int | None = None,
    stats: ReadingStats | None = None,
    cache_dir: str | os.PathLike | None = None,
    cache_bytes: int = CACHE_BYTES,
    data_service: str | None = None,
) -> tf.data.Dataset:
    """Batches of one split of a shard set.

    Training batches (all views but "eval") are cut from the endless sequence epoch 0, epoch 1, ..., each of
    which holds every sample once, shuffled: batch t is the `batch_size` samples from position t * batch_size on.
    Evaluation is one pass in the manifest's order, its last batch filled up with copies that weigh 0.

    Everything random about a sample is a function of (seed, epoch, index of the sample). So the same
    arguments give the same batches, and `start_step=t` begins with batch t of what would begin at 0.

    What is read:
        shards: folder of a shard set (`tools.make_shards` writes one), its URL, or the set itself.
        split: name; None takes the only one.
        batch_size: samples in a global batch, over all hosts and replicas.
        seed: of the run, from 0 to 2**63 - 1; unused in evaluation but for `noise`.
        start_step: number of batches to leave out; seeks, and reads no more than one block of each stream for it. 0
            in evaluation.
        shuffle_block_shards: shards whose samples are mixed at a time. Sets the order, and the memory for encoded
            samples (see `host_reading`). More of it helps where shards are not shuffled, as other tools leave them.
        max_streams: upper bound of the canonical streams (see `order`). Sets the order. Raise it to the number of
            hosts where that is more, and `shuffle_block_shards` with it.

    What is seen of an image:
        view: "pretrain" (random crops, no labels), "train" (random crops, labels), "probe" (as "train", with the
            linear probe's crops) or "eval" (centre crops).
        image_size: side in pixels, or (height, width).
        channels: 1 (grey) or 3 (RGB); of a split of arrays (`.npy`), which are not converted, theirs.
        min_area: lower bound of the random crop's share of the image's area, above 0 and up to 1. None: .2
            in pre-training and .08 in training, as in the paper. Not for evaluation.
        flip: whether training images are flipped horizontally with probability .5. Unused in evaluation.
        crop: "random" (resized), or, for view "pretrain", one of fixed size: "fixed" (at a random place) or "central".
            They are cut out of the image as if its short side had been resized to `resize_size`.
        resize_size: pixels; the short side of an image before its centre is taken (see `views.eval_view`), or a crop
            of fixed size. None: 256/224 of the short side of `image_size` up to 224, and just that side above.
        rand_augment: policy such as "rand-m9-mstd0.5-inc1" (see `augment.parse_rand_augment`). Not for evaluation, and
            for uint8 images of 1 or 3 channels only.
        color_jitter: see `augment.ColorJitter`. Not for evaluation, and for the same images only.
        noise: per name of a feature, a number of draws: each sample gets as many uniform draws from [0, 1)
            under that name, such as {"noise": 196} for masks. They depend on the name, not on each other. In
            evaluation they are those of epoch 0.

    How it is read, which changes nothing of the above:
        host: number of this host.
        num_hosts: hosts that share each batch; divides `batch_size`. This host gets and reads the `host`-th slice of
            each global batch; in evaluation the `host`-th stretch of the split, in as many batches as all others.
        engine: "host" decodes in Python threads with native libraries: the fastest. "graph" is TensorFlow alone, for
            where host Python cannot run; resized pixels may differ by one level from the host engine's, rarely by
            more. "auto": "graph" with `data_service`, else "host".
        num_threads: that decode; None: one for each processor that the process may use.
        prefetch: finished batches kept ready beside those in work; None: 2. A batch takes B * H * W * C numbers.
        stats: counts what is decoded and skipped; `ReadingStats(max_corrupt=n)` allows n samples to be skipped. None:
            a damaged sample is an error.
        cache_dir: local folder for copies of shards that lie behind a URL; None: parts of them are read from there in
            each epoch. Several processes may share it.
        cache_bytes: upper bound of all copies together; at least the largest shard.
        data_service: address of a tf.data service, such as "grpc://host:port", which decodes; see `data_service`.

    Returns:
        Dataset of `features` (view "pretrain"), `(features, labels)` ("train", "probe") or `(features, labels,
        weights)` ("eval"). `features` is a dict: `image` (B, H, W, C), uint8, or uint16 where the split's arrays are;
        `index` int64 (B,), number of the sample in the split, and each noise float32 (B, draws). `labels` int32 (B,),
        in evaluation -1 where unknown; `weights` float32 (B,), 1 or 0. B is batch_size / num_hosts. The cardinality is
        infinite in training, and the number of batches in evaluation.

    Raises:
        ManifestError: the shard set or the split is missing or damaged.
        ValueError: an argument is out of its range, a training view of labels without labels, an empty split.
    """
    shard_set = shards if isinstance(shards, ShardSet) else load_manifest(shards)
    options = LoadOptions(
        shard_set=shard_set,
        split=shard_set.split(split),
        view=view,
        batch_size=batch_size,
        image_size=sides(image_size),
        channels=channels,
        seed=seed,
        start_step=start_step,
        noise=dict(noise or {}),
        min_area=min_area,
        flip=flip,
        crop=crop,
        resize_size=resize_size,
        rand_augment=parse_rand_augment(rand_augment) if isinstance(rand_augment, str) else rand_augment,
        color_jitter=color_jitter,
        shuffle_block_shards=shuffle_block_shards,
        max_streams=max_streams,
        host=host,
        num_hosts=num_hosts,
        engine=engine,
        num_threads=num_threads,
        prefetch=prefetch,
        stats=stats or ReadingStats(),
        cache=ShardCache(cache_dir, cache_bytes) if cache_dir else None,
        data_service=data_service,
    )
    if engine == "graph" or data_service:
        from pipeline.graph_engine import graph_dataset

        dataset = graph_dataset(options)
    else:
        dataset = as_tensorflow(lambda: batches(options), options, options.host_batch_size)
    cardinality = tf.data.INFINITE_CARDINALITY if options.is_training else options.num_batches
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(cardinality))
    return _with_settings(dataset.prefetch(prefetch or PREFETCH))


def as_tensorflow(
    make_batches: Callable[[], Iterator[Batch]], options: ViewOptions, batch_size: int
) -> tf.data.Dataset:
    """Batches that Python threads make, as a dataset of the structure that the view has.

    Args:
        make_batches: starts a pass over the batches; called each time that the dataset is iterated.
        options: say what the batches look like.
        batch_size: rows of a batch.
    """

    def generate():
        for batch in until_exit(make_batches()):
            yield _structure(options, *batch)

    features = {"image": (options.image_shape, tf.as_dtype(options.dtype)), "index": ((), tf.int64)}
    features |= {name: ((length,), tf.float32) for name, length in options.noise.items()}
    features = {name: tf.TensorSpec((batch_size, *shape), kind) for name, (shape, kind) in features.items()}
    labels, weights = tf.TensorSpec((batch_size,), tf.int32), tf.TensorSpec((batch_size,), tf.float32)
    signature = _structure(options, features, labels, weights)
    return _with_settings(tf.data.Dataset.from_generator(generate, output_signature=signature))


def _structure(options: ViewOptions, features, labels, weights):
    if not options.is_training:
        return features, labels, weights
    return (features, labels) if options.view in WITH_LABELS else features


def _with_settings(dataset: tf.data.Dataset) -> tf.data.Dataset:
    settings = tf.data.Options()
    settings.deterministic = True
    # Replica r of R takes the r-th slice of each global batch; files are no unit of work here.
    settings.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(settings)
