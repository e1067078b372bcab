"""Encoded samples to batches, several at once; a sample that cannot be decoded is named.

TensorFlow's decoders raise without saying on which sample. So samples are prepared in small groups, each by a
dataset of its own that leaves out failures: one that is missing afterwards is named, and the decoder's own
words are logged as a warning. Setting up such a dataset takes about .15 ms, which is why groups share one.
"""

import numpy as np
import tensorflow as tf

from pipeline.manifest import Split

GROUP_SAMPLES = 16


def batch_samples(
    samples: tf.data.Dataset, prepare, *, split: Split, batch_size: int, drop_remainder: bool
) -> tf.data.Dataset:
    """Applies a function to each sample and batches the results, in the samples' order.

    Args:
        samples: dicts of scalars, `index` among them (`reading.read_samples`).
        prepare: function from such a dict to a structure of tensors with static shapes.
        split: where the samples come from, to name one that fails.
        batch_size: samples in a batch.
        drop_remainder: whether to leave out a last batch of fewer samples; the shapes are static then.

    Returns:
        Dataset of structures as `prepare` returns them, with the batch as first dimension.

    Raises:
        tf.errors.InvalidArgumentError: while iterating, when `prepare` fails on a sample; names it.
    """
    ends = np.cumsum([shard.samples for shard in split.shards])
    files = [shard.file for shard in split.shards]

    def prepare_group(group):
        each = tf.data.Dataset.from_tensor_slices(group)
        each = each.map(lambda sample: (sample["index"], prepare(sample)))
        # Comes after the samples, so it is taken only when one of them failed; no group is ever empty.
        blank = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), each.element_spec[1])
        blank = tf.data.Dataset.from_tensors((tf.constant(-1, tf.int64), blank))
        each = each.ignore_errors(log_warning=True).concatenate(blank)
        count = tf.shape(group["index"], tf.int64)[0]
        indices, prepared = each.take(count).batch(count).get_single_element()
        with tf.control_dependencies([check_complete(group["index"], indices)]):
            return tf.nest.map_structure(tf.identity, prepared)

    def check_complete(expected, received):
        received = tf.pad(received, [[0, tf.shape(expected)[0] - tf.shape(received)[0]]], constant_values=-1)
        is_other = tf.not_equal(expected, received)
        index = expected[tf.argmax(tf.cast(is_other, tf.int32))]
        file = tf.constant(files)[tf.searchsorted(ends, index[tf.newaxis], side="right")[0]]
        what = f"A sample of split {split.name!r} cannot be decoded (why: TF_CPP_MIN_LOG_LEVEL=1). Its index, shard:"
        return tf.debugging.Assert(tf.logical_not(tf.reduce_any(is_other)), [what, index, file])

    groups = samples.batch(min(GROUP_SAMPLES, batch_size))
    groups = groups.map(prepare_group, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return groups.rebatch(batch_size, drop_remainder=drop_remainder)
