"""The graph engine: batches made by TensorFlow's operations alone, here or on the workers of a tf.data service."""

import tensorflow as tf

from pipeline import augment_graph, data_service
from pipeline.batching import batch_samples, count_corrupt
from pipeline.graph_reading import read_rows
from pipeline.load_options import LoadOptions
from pipeline.view_options import WITH_LABELS
from pipeline.views import draw_uniform, eval_view, random_view, sample_seed


def graph_dataset(options: LoadOptions) -> tf.data.Dataset:
    """The batches that `pipeline.load` describes.

    Raises:
        ValueError: TensorFlow cannot read where the shards lie, or the data service cannot be used.
    """
    if options.is_training:
        return _training(options)
    return _evaluation(options)


def _training(options: LoadOptions) -> tf.data.Dataset:
    def make_batches(host: int, num_hosts: int) -> tf.data.Dataset:
        rows = _rows(options, host, num_hosts, start_step=options.start_step)
        return _batches(options, rows, options.batch_size // num_hosts)

    if not options.data_service:
        return make_batches(options.host, options.num_hosts)
    return data_service.distribute_training(
        make_batches,
        options.data_service,
        batch_size=options.batch_size,
        start_step=options.start_step,
        host=options.host,
        num_hosts=options.num_hosts,
    )


def _evaluation(options: LoadOptions) -> tf.data.Dataset:
    size = options.host_batch_size

    def make_batches(part: int, num_parts: int) -> tf.data.Dataset:
        rows = _rows(options, options.host, options.num_hosts)
        if num_parts > 1:
            rows = data_service.take_batches(rows, size, part, num_parts)
        batches = _batches(options, rows, size).map(lambda *batch: _fill_up(batch, size), num_parallel_calls=1)
        # A host whose stretch is shorter than those of others has as many batches.
        blank = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), batches.element_spec)
        count = len(range(part, options.num_batches, num_parts))
        return batches.concatenate(tf.data.Dataset.from_tensors(blank).repeat(count)).take(count)

    if not options.data_service:
        return make_batches(0, 1)
    return data_service.distribute_evaluation(make_batches, options.data_service, num_batches=options.num_batches)


def _rows(options: LoadOptions, host: int, num_hosts: int, start_step: int = 0) -> tf.data.Dataset:
    return read_rows(
        options.shard_set,
        options.split,
        options.order,
        batch_size=options.batch_size,
        start_step=start_step,
        host=host,
        num_hosts=num_hosts,
        labels=options.labels,
    )


def _batches(options: LoadOptions, rows: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    skips = options.stats.max_corrupt > 0 and not options.data_service
    return batch_samples(
        rows,
        lambda sample: _prepare(options, sample),
        split=options.split,
        batch_size=batch_size,
        drop_remainder=options.is_training,
        on_corrupt=count_corrupt(options.stats, options.shard_set, options.split) if skips else None,
        mark_corrupt=None if options.is_training else _weigh_nothing,
    )


def _prepare(options: LoadOptions, sample):
    seed = sample_seed(options.seed, sample["epoch"], sample["index"])
    make_image = _random_image if options.is_training else _central_image
    features = {"image": make_image(options, sample["encoded"], seed), "index": sample["index"]}
    features |= {name: draw_uniform(seed, f"noise/{name}", (length,)) for name, length in options.noise.items()}
    if not options.is_training:
        return features, sample["label"], 1.0
    return (features, sample["label"]) if options.view in WITH_LABELS else features


def _random_image(options: LoadOptions, encoded, seed):
    image = random_view(
        encoded,
        seed,
        options.image_size,
        channels=options.channels,
        dtype=options.dtype,
        min_area=options.crop_min_area,
        flip=options.flip,
        clamped=options.view == "probe",
        fixed=options.fixed_crop,
    )
    for purpose in ("rand_augment", "color_jitter"):
        policy = getattr(options, purpose)
        if policy is not None:
            image = augment_graph.apply(image, policy, draw_uniform(seed, purpose, (policy.num_draws,), "float64"))
    return tf.ensure_shape(image, options.image_shape)


def _central_image(options: LoadOptions, encoded, seed):
    return eval_view(
        encoded, options.image_size, options.eval_resize_size, channels=options.channels, dtype=options.dtype
    )


def _weigh_nothing(batch, is_copy):
    features, labels, weights = batch
    return features, labels, tf.where(is_copy, 0.0, weights)


def _fill_up(batch, batch_size: int):
    """Fills a batch up to `batch_size` with its last sample, at weight 0."""
    features, labels, weights = batch
    count = tf.shape(weights)[0]
    missing = batch_size - count

    def fill(column):
        return tf.gather(column, tf.minimum(tf.range(batch_size), count - 1))

    def filled():
        return tf.nest.map_structure(fill, (features, labels)) + (tf.concat([weights, tf.zeros([missing])], axis=0),)

    padded = tf.cond(missing > 0, filled, lambda: (features, labels, weights))
    return tf.nest.map_structure(lambda column: tf.ensure_shape(column, [batch_size, *column.shape[1:]]), padded)
