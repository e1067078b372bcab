"""From a plan to encoded samples: whole shards are read by TensorFlow's own operations, cut by the index.

A tar is never parsed here. One `tf.io.read_file` brings a shard into memory, and one vectorised
`tf.strings.substr` cuts all its images, in the order in which they will be used. Python runs once a block (to
plan it), never once a sample.

Memory: while the samples of one block are used, the next block is read, so up to

    (2 * shards per block + SHARDS_IN_FLIGHT) * largest shard in bytes

of encoded data are held: 20 shards in training, 2.0 GB at the default shard size of 100 MB, and 3 shards in
evaluation, whose blocks are single shards. A split with fewer shards than `order.BLOCK_SHARDS` holds less.
Measured with shards of 10 MB: 197 MB, and 280 MB with what glibc's allocator keeps for later.
"""

import functools
import os

import numpy as np
import tensorflow as tf

from pipeline.manifest import ShardSet, Split
from pipeline.order import Block, ManifestOrder, ShuffledOrder
from pipeline.shard_index import read_index

SHARDS_IN_FLIGHT = 4
# Columns of parsed indices kept in memory: 32 bytes a sample, so a few MB.
INDICES_KEPT = 64


def read_samples(
    shard_set: ShardSet,
    split: Split,
    order: ShuffledOrder | ManifestOrder,
    *,
    start_position: int = 0,
    labels: str = "ignored",
) -> tf.data.Dataset:
    """The samples of a split in an order, from a position on.

    Args:
        shard_set: where the split lies.
        split: the split to read.
        order: of this split; decides when the sequence ends, if ever.
        start_position: place in the order's sequence of the first sample. At most one block is read and not
            used to get there.
        labels: "ignored" (all are -1), "optional" (-1 where a sample has none) or "required".

    Returns:
        Dataset of dicts of scalars: `encoded` (string), `label` (int32), `index` and `epoch` (int64).

    Raises:
        tf.errors.InvalidArgumentError: while reading; a shard of another size than its manifest says, a
            damaged index, a label that is missing though required, or no number of a class.
    """
    num_classes = len(shard_set.classes) if shard_set.classes else 0
    first_block, skip = order.locate(start_position)
    shard_samples = [shard.samples for shard in split.shards]

    @functools.lru_cache(maxsize=INDICES_KEPT)
    def columns(shard: int) -> np.ndarray:
        path = os.path.join(shard_set.root, split.shards[shard].index)
        index = read_index(path, shard_samples[shard], tar_bytes=split.shards[shard].bytes)
        if labels == "required" and not index.label_size.all():
            key = index.keys[int(np.argmin(index.label_size))]
            raise ValueError(
                f"Sample {key!r} in {split.shards[shard].file} has no label, and this view needs labels; "
                "use view='pretrain', or make the shards again with labels"
            )
        return np.stack([index.image_offset, index.image_size, index.label_offset, index.label_size])

    def plan(number: np.int64) -> tuple[np.ndarray, ...]:
        block = order.block(int(number))
        if number == first_block:
            block = block._replace(slot=block.slot[skip:], row=block.row[skip:], index=block.index[skip:])
        return _plan_arrays(shard_set.root, split, block, order.shards_per_block, columns)

    def read_block(number):
        arrays = tf.numpy_function(plan, [number], list(_PLAN_TYPES.values()), stateful=False)
        named = dict(zip(_PLAN_TYPES, arrays, strict=True))
        for name, array in named.items():
            array.set_shape([4, None] if name == "cuts" else [None])
        return _read_block(named, order.shards_per_block, labels != "ignored", num_classes)

    end = np.iinfo(np.int64).max if order.end is None else order.end
    # One call in parallel to the consumer reads one block ahead. Without a number given, tf.data would choose
    # one, and hold as many blocks.
    blocks = tf.data.Dataset.range(first_block, end).map(read_block, num_parallel_calls=1)
    return blocks.flat_map(_samples_of_block)


_PLAN_TYPES = {
    "paths": tf.string,  # (shards per block,), "" where the block has fewer
    "bytes": tf.int64,  # (shards per block,)
    "splits": tf.int64,  # (shards per block + 1,): where each shard's columns of `cuts` begin
    "cuts": tf.int64,  # (4, samples), by shard: image offset and size, label offset and size
    "index": tf.int64,  # (samples,), by shard
    "slot": tf.int64,  # (samples,), in the order of use: which shard the next sample comes from
    "epoch": tf.int64,  # (samples,)
}


def _plan_arrays(root: str, split: Split, block: Block, num_slots: int, columns) -> tuple[np.ndarray, ...]:
    shards = [split.shards[shard] for shard in block.shards]
    missing = num_slots - len(shards)
    paths = [os.path.join(root, shard.file).encode() for shard in shards] + [b""] * missing
    sizes = [shard.bytes for shard in shards] + [0] * missing
    # Samples grouped by shard, in the order of use within each: then each shard's samples are just read on.
    by_shard = np.argsort(block.slot, kind="stable")
    splits = np.searchsorted(block.slot[by_shard], np.arange(num_slots + 1))
    rows = block.row[by_shard]
    cuts = [columns(int(shard))[:, rows[splits[slot] : splits[slot + 1]]] for slot, shard in enumerate(block.shards)]
    return (
        np.array(paths, object),
        np.array(sizes, np.int64),
        splits.astype(np.int64),
        np.concatenate(cuts, axis=1),
        block.index[by_shard],
        block.slot,
        np.full(len(block.slot), block.epoch, np.int64),
    )


def _read_block(plan, num_slots: int, with_labels: bool, num_classes: int):
    per_slot = []
    for slot in range(num_slots):
        rows = slice(plan["splits"][slot], plan["splits"][slot + 1])
        path, expected, cuts = plan["paths"][slot], plan["bytes"][slot], plan["cuts"][:, rows]
        read = functools.partial(_read_shard, path, expected, cuts, with_labels, num_classes)
        # Waiting for an earlier shard bounds the memory for whole shards.
        after = per_slot[slot - SHARDS_IN_FLIGHT][:2] if slot >= SHARDS_IN_FLIGHT else ()
        with tf.control_dependencies(after):
            encoded, label = tf.cond(
                tf.shape(cuts)[1] > 0, read, lambda: (tf.zeros([0], tf.string), tf.zeros([0], tf.int32))
            )
        per_slot.append((encoded, label, plan["index"][rows]))
    return tuple(per_slot), plan["slot"], plan["epoch"]


def _read_shard(path, expected_bytes, cuts, with_labels: bool, num_classes: int):
    content = tf.io.read_file(path)
    # `length` is int32; both sides wrap alike for shards of 2 GiB and more.
    whole = tf.equal(tf.strings.length(content), tf.cast(expected_bytes, tf.int32))
    check = tf.debugging.Assert(
        whole,
        ["Damaged shard", path, "has bytes:", tf.strings.length(content), "expected:", expected_bytes],
    )
    with tf.control_dependencies([check]):
        encoded = tf.strings.substr(content, cuts[0], cuts[1])  # (samples,)
    if not with_labels:
        return encoded, tf.fill(tf.shape(encoded), -1)
    with tf.control_dependencies([check]):
        text = tf.strings.strip(tf.strings.substr(content, cuts[2], cuts[3]))
    label = tf.strings.to_number(tf.where(cuts[3] > 0, text, "-1"), tf.int32)  # (samples,)
    known = tf.reduce_all(((label >= 0) & (label < num_classes)) | (cuts[3] == 0))
    check = tf.debugging.Assert(
        known,
        ["Labels in", path, "range from", tf.reduce_min(label), "to", tf.reduce_max(label)]
        + [f"expected 0 to {num_classes - 1}"],
    )
    with tf.control_dependencies([check]):
        return encoded, tf.identity(label)


def _samples_of_block(per_slot, slot, epoch):
    parts = [
        tf.data.Dataset.from_tensor_slices({"encoded": encoded, "label": label, "index": index})
        for encoded, label, index in per_slot
    ]
    samples = parts[0]
    if len(parts) > 1:
        choices = tf.data.Dataset.from_tensor_slices(slot)
        samples = tf.data.Dataset.choose_from_datasets(parts, choices, stop_on_empty_dataset=False)
    epochs = tf.data.Dataset.from_tensor_slices(epoch)
    return tf.data.Dataset.zip(samples, epochs).map(lambda sample, epoch: {**sample, "epoch": epoch})
