"""What an encoder makes of every image of a data set, each one exactly once."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

POOLINGS = ("class_token", "patch_mean")


class Features(NamedTuple):
    """Features of a split, sorted by the number of the sample.

    Attributes:
        vectors: float32 (samples, embed_dim).
        labels: int32 (samples,); -1 where unknown.
        index: int64 (samples,), the number of the sample in its split.
    """

    vectors: np.ndarray
    labels: np.ndarray
    index: np.ndarray


def make_encode(encoder, strategy: tf.distribute.Strategy, pooling: str = "class_token") -> Callable:
    """Compiles the encoder for `read_features`; to be kept, since compiling takes seconds.

    Args:
        encoder: a built `VisionTransformer`; it sees all patches, nothing is masked.
        strategy: whose replicas share the batches.
        pooling: "class_token", or "patch_mean" of the other tokens.

    Returns:
        Function of a batch (features, labels, weights) to the rows of all replicas and hosts: vectors, labels, index,
        weights.

    Raises:
        ValueError: unknown pooling.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}. Received: {pooling!r}")

    def encode_replica(features, labels, weights):
        tokens = tf.cast(encoder(features["image"], training=False), tf.float32)  # (B, N+1, D)
        vectors = tokens[:, 0] if pooling == "class_token" else tf.reduce_mean(tokens[:, 1:], axis=1)  # (B, D)
        return vectors, labels, features["index"], weights

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
