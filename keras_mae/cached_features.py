"""Features of a frozen encoder instead of images: computed once a run, so that epochs of a linear probe take moments.

Images are seen as in evaluation (centre crop, no mirroring). The order of training is the one that images would have.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf

import pipeline
from keras_mae.evaluation.features import Features, make_encode, pooled, read_features
from keras_mae.training.run import Data


def with_cached_features(
    data: Data,
    build_encoder: Callable,
    folder: str | os.PathLike,
    identity: Mapping,
    *,
    batch_size: int,
    pool: str,
    strategy: tf.distribute.Strategy,
) -> Data:
    """The same data with `pooled` (batch, embed_dim) in the place of `image`; computed when it is asked for.

    Args:
        data: of one host, with `in_order` and `batch_samples`, none of whose images may be skipped.
        build_encoder: -> the encoder, built in the strategy's scope.
        folder: where features are kept, in a file for each split.
        identity: JSON values that all features depend on beside the split: encoder, pool, sizes, precision.
        batch_size: of the global batch.
        pool: of `evaluation.features.pooled`.
        strategy: whose replicas share the batches.
    """

    @functools.cache
    def encode():
        with strategy.scope():
            encoder = build_encoder()
        return make_encode(pooled(encoder, pool), strategy)

    @functools.cache
    def features(split: str, fingerprint: str) -> Features:
        read = data.in_order if split == data.identity["split"] else data.validation
        name = hashlib.sha256(json.dumps([identity, fingerprint], sort_keys=True).encode()).hexdigest()
        return kept(pathlib.Path(folder, f"{split}-{name[:16]}.npz"), lambda: read_features(encode(), read()))

    def train(start_step):
        known = features(data.identity["split"], data.identity["fingerprint"])
        rows = (data.batch_samples(batch) for batch in itertools.count(start_step))
        return distributed(strategy, lambda: training_batches(known, rows), batch_size, known, has_weights=False)

    def validation():
        known = features(data.identity["val_split"], data.identity["val_fingerprint"])
        return distributed(strategy, lambda: padded_batches(known, batch_size), batch_size, known, has_weights=True)

    return dataclasses.replace(data, train=train, validation=None if data.validation is None else validation)


def kept(path: pathlib.Path, compute: Callable[[], Features]) -> Features:
    """The features of a file; computed and written, as a whole, where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        with open(temporary, "wb") as file:
            np.savez(file, **compute()._asdict())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    with np.load(path) as arrays:
        return Features(**arrays)


def training_batches(known: Features, rows: Iterator[list[int]]) -> Iterator[tuple]:
    """Batches (features, labels) of the samples that `rows` names."""
    for numbers in rows:
        yield {"pooled": known.vectors[numbers], "index": known.index[numbers]}, known.labels[numbers]


def padded_batches(known: Features, batch_size: int) -> Iterator[tuple]:
    """One pass of batches (features, labels, weights); copies that fill up the last one have weight 0."""
    for start in range(0, len(known.index), batch_size):
        numbers = np.arange(start, start + batch_size)
        weights = (numbers < len(known.index)).astype("float32")
        numbers = np.minimum(numbers, len(known.index) - 1)
        features = {"pooled": known.vectors[numbers], "index": known.index[numbers]}
        yield features, known.labels[numbers], weights


def distributed(strategy, make_batches: Callable, batch_size: int, known: Features, has_weights: bool):
    """What `fit` and loops over batches take: replica r gets the r-th slice of each batch."""
    rows = {"pooled": tf.TensorSpec((batch_size, known.vectors.shape[1]), tf.float32)}
    rows["index"] = tf.TensorSpec((batch_size,), tf.int64)
    signature = (rows, tf.TensorSpec((batch_size,), tf.int32))
    cardinality = tf.data.INFINITE_CARDINALITY
    if has_weights:
        signature = (*signature, tf.TensorSpec((batch_size,), tf.float32))
        cardinality = -(-len(known.index) // batch_size)

    def make_dataset(host, num_hosts):
        dataset = tf.data.Dataset.from_generator(make_batches, output_signature=signature)
        return dataset.apply(tf.data.experimental.assert_cardinality(cardinality)).prefetch(2)

    return pipeline.distribute(strategy, make_dataset)
