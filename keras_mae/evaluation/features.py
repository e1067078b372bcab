"""What an encoder makes of every image of a data set, each one exactly once."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_mae.models.backbone import POOLS, pool_tokens


class Features(NamedTuple):
    """Features of a split, sorted by the number of the sample.

    Attributes:
        vectors: float32 (samples, numbers).
        labels: int32 (samples,); -1 where unknown.
        index: int64 (samples,), the number of the sample in its split.
    """

    vectors: np.ndarray
    labels: np.ndarray
    index: np.ndarray


def pooled(encoder, pool: str = "class_token") -> Callable:
    """Function of images to one vector each, float32 (batch, embed_dim).

    Args:
        encoder: a built `VisionTransformer`; it sees all patches, nothing is masked.
        pool: "class_token", or "patch_mean" of the other tokens.

    Raises:
        ValueError: unknown pool.
    """
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}. Received: {pool!r}")
    return lambda images: pool_tokens(tf.cast(encoder(images, training=False), tf.float32), pool, encoder.grid_size)


def make_encode(vectors_of: Callable, strategy: tf.distribute.Strategy) -> Callable:
    """Compiles a function of images for `read_features`; to be kept, since compiling takes seconds.

    Args:
        vectors_of: images -> float32 (batch, numbers), such as `pooled(encoder)`.
        strategy: whose replicas share the batches.

    Returns:
        Function of a batch (features, labels, weights) to the rows of all replicas and hosts: vectors, labels, index,
        weights.
    """

    def encode_replica(features, labels, weights):
        return vectors_of(features["image"]), labels, features["index"], weights

    @tf.function(reduce_retracing=True, autograph=False)
    def encode(batch):
        outputs = strategy.run(encode_replica, args=batch)
        if strategy.num_replicas_in_sync == 1:
            return outputs
        return tuple(strategy.gather(value, axis=0) for value in outputs)

    return encode


def read_features(encode: Callable, dataset: Iterable, samples: int | None = None) -> Features:
    """Features of a pass over a split; padding is left out.

    Args:
        encode: of `make_encode`.
        dataset: batches (features, labels, weights) in the order of the shards, distributed as `encode` needs them.
        samples: take the first so many of the split; None: all.

    Raises:
        ValueError: there is no sample.
    """
    rows = []
    for batch in dataset:
        *columns, index, weights = (np.asarray(value) for value in encode(batch))
        taken = weights > 0
        if samples is not None:
            # Each host reads a stretch of its own: only where the first of them is past the last sample all are.
            if (index[taken] >= samples).all() and taken.any():
                break
            taken &= index < samples
        rows.append([column[taken] for column in (*columns, index)])
    if not sum(len(row[0]) for row in rows):
        raise ValueError("There is nothing to make features of: the data set has no sample.")
    vectors, labels, index = (np.concatenate(column) for column in zip(*rows, strict=True))
    order = np.argsort(index)
    return Features(vectors[order], labels[order], index[order])
