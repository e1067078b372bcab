"""Classification by the nearest neighbours among features: what a frozen encoder separates, nothing trained.

The weighted vote of the DINO and MoCo literature: features of length 1, the k training images of highest cosine
similarity s, each voting for its class with exp(s / temperature). Exact: every similarity is computed, in float32, one
block of training images and one of queries at a time, so that the whole table of similarities never exists.

For a masked autoencoder this is low, and rightly so: its features are for fine-tuning, and not separated linearly (100
epochs of ImageNet-1K, ViT-B: kNN 11.2%, linear probe 46.0%, fine-tuned 81.3%; published by others). It is for comparing
runs of one kind.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from keras_mae.evaluation.features import Features, make_encode, pooled, read_features

BANK_BLOCK = 16384  # training images of a block of similarities
QUERY_BLOCK = 1024
K = 20
TEMPERATURE = 0.07


class KnnError(ValueError):
    """kNN is impossible with these images."""


def nearest_neighbors(
    bank: np.ndarray, queries: np.ndarray, k: int, bank_block: int = BANK_BLOCK, query_block: int = QUERY_BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` rows of `bank` of highest cosine similarity to each query, best first; of equals the first ones.

    Args:
        bank: (samples, dim).
        queries: (num_queries, dim).
        k: at most the number of samples.
        bank_block, query_block: rows of a block of similarities; they bound the memory and change nothing else.

    Returns:
        similarities float32 (num_queries, k) and rows of the bank, int32 (num_queries, k).

    Raises:
        KnnError: `k` is out of range.
    """
    if not 1 <= k <= len(bank):
        raise KnnError(f"k must be from 1 to the number of training images. Received: k={k}, {len(bank)} images")
    bank, queries = _of_length_1(bank), _of_length_1(queries)
    starts = range(0, len(queries), query_block)
    blocks = [tf.constant(queries[start : start + query_block]) for start in starts]
    best = [(tf.fill((len(block), k), -np.inf), tf.zeros((len(block), k), tf.int32)) for block in blocks]
    with _full_float32():
        for start in range(0, len(bank), bank_block):
            rows = tf.constant(bank[start : start + bank_block])  # to the device once
            best = [_merge(*pair, block, rows, tf.constant(start)) for pair, block in zip(best, blocks, strict=True)]
    similarities, rows = zip(*best, strict=True)
    return np.concatenate(similarities), np.concatenate(rows)


@tf.function(reduce_retracing=True, autograph=False)
def _merge(similarities, rows, queries, block, start):
    """The best of those found so far and of one more block of the bank, which begins at row `start`."""
    k = tf.shape(similarities)[1]
    table = tf.matmul(queries, block, transpose_b=True)  # (queries, block)
    found, places = tf.math.top_k(table, tf.minimum(k, tf.shape(table)[1]))
    candidates = tf.concat([similarities, found], axis=1)  # earlier rows first: of equals, top_k takes the first
    candidate_rows = tf.concat([rows, places + start], axis=1)
    best, places = tf.math.top_k(candidates, k)
    return best, tf.gather(candidate_rows, places, batch_dims=1)


def vote(
    similarities: np.ndarray, labels: np.ndarray, num_classes: int, temperature: float = TEMPERATURE
) -> np.ndarray:
    """The class with most votes for each query: int64 (num_queries,); of equals the first.

    Args:
        similarities: (num_queries, k), best first.
        labels: (num_queries, k), classes of these neighbours.
        num_classes: of the data set.
        temperature: a neighbour's vote is exp(similarity / temperature).
    """
    predictions = np.empty(len(labels), np.int64)
    for start in range(0, len(labels), QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        # Relative to the best neighbour: the same winner, and no overflow.
        weights = np.exp((similarities[block] - similarities[block, :1]).astype(np.float64) / temperature)
        query = np.arange(len(weights))[:, None]
        cells = (query * num_classes + labels[block]).ravel()
        votes = np.bincount(cells, weights.ravel(), minlength=len(weights) * num_classes)
        predictions[block] = votes.reshape(-1, num_classes).argmax(axis=1)
    return predictions


def knn_accuracies(
    bank: Features, queries: Features, ks: Sequence[int] = (K,), temperature: float = TEMPERATURE
) -> dict[int, float]:
    """Share of the queries (0..1) whose class the vote of their neighbours names, for each k; one search serves all.

    Raises:
        KnnError: a sample has no class, or a k is out of range.
    """
    for name, features in (("training", bank), ("validation", queries)):
        unknown = int((features.labels < 0).sum())
        if unknown:
            raise KnnError(f"kNN needs the class of every image; {unknown} {name} images have none.")
    similarities, rows = nearest_neighbors(bank.vectors, queries.vectors, max(ks))
    labels, num_classes = bank.labels[rows], 1 + int(max(bank.labels.max(), queries.labels.max()))
    return {
        k: float((vote(similarities[:, :k], labels[:, :k], num_classes, temperature) == queries.labels).mean())
        for k in ks
    }


def check_classes(dataset, strategy: tf.distribute.Strategy) -> None:
    """Raises KnnError if the first images of a split have no class; reads one batch."""
    _, labels, weights = next(iter(dataset))
    for known, weight in zip(*map(strategy.experimental_local_results, (labels, weights)), strict=True):
        if np.any((np.asarray(known) < 0) & (np.asarray(weight) > 0)):
            raise KnnError("kNN needs the class of every image; the first images of the split have none.")


def watch_knn(model, data, strategy: tf.distribute.Strategy, samples: int | None = None) -> Callable[[], dict]:
    """kNN of an encoder that is being trained, for `training.run.Task.evaluations`.

    Args:
        model: has `encoder`.
        data: a `training.run.Data` with `in_order` and `validation`.
        strategy: of tf.distribute.
        samples: use the first so many of the training split; None: all.

    Returns:
        Function to {"knn": accuracy}, with `K` neighbours and `TEMPERATURE`.
    """
    encode = make_encode(pooled(model.encoder), strategy)

    def evaluate():
        bank, queries = read_features(encode, data.in_order(), samples), read_features(encode, data.validation())
        return {"knn": knn_accuracies(bank, queries)[K]}

    return evaluate


def _of_length_1(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Without TensorFloat-32, in which GPUs by default round what they multiply to three digits."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)
