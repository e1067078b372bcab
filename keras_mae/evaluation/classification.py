"""Accuracy of a classifier on a whole split, every image counted exactly once, on any number of replicas.

The devices compute logits; what is made of them is made on the host, of one image at a time. Hits are counted in whole
numbers, and losses are added exactly, so that neither padding nor the order of the images moves a digit of the results:
with as many images in each replica's batch they are the same on one replica and on many. (In batches of another shape a
device may multiply matrices in another order, which moves a logit in its last digit.)
"""

import base64
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_mae.evaluation.class_map import ClassMap, EvaluationError
from keras_mae.training.workers import exchange

TOP = 5
UNKNOWN = -1  # label of an image whose class is not known


class Answers(NamedTuple):
    """What a classifier says of each image of a split, sorted by the number of the image.

    Attributes:
        labels: int64 (images,), the right classes.
        predicted: int64 (images,), the classes of the highest logit; of equals the first.
        ranks: int64 (images,), how many classes come before the right one.
        losses: float64 (images,), cross-entropy without smoothing.
        index: int64 (images,), the number of the image in its split.
    """

    labels: np.ndarray
    predicted: np.ndarray
    ranks: np.ndarray
    losses: np.ndarray
    index: np.ndarray


def make_predict(classifier, strategy: tf.distribute.Strategy) -> Callable:
    """Compiles the classifier for `read_answers`; to be kept, since compiling takes seconds.

    Args:
        classifier: a model from images to logits.
        strategy: whose replicas share the batches.

    Returns:
        Function of a batch (features, labels, weights) to logits, labels, index and weights, each of every replica.
    """

    def predict_replica(features, labels, weights):
        logits = tf.cast(classifier(features, training=False), tf.float32)  # (B, num_classes)
        return logits, labels, features["index"], weights

    @tf.function(reduce_retracing=True, autograph=False)
    def predict(batch):
        return strategy.run(predict_replica, args=batch)

    return predict


def read_answers(
    predict: Callable,
    dataset: Iterable,
    strategy: tf.distribute.Strategy,
    num_images: int,
    class_map: ClassMap | None = None,
) -> Answers:
    """What the classifier says of every image of a split; padding is left out.

    Args:
        predict: of `make_predict`.
        dataset: batches (features, labels, weights), distributed over the strategy's replicas; features have `index`.
        strategy: of `predict`. With several hosts each has its part, and all get all answers in the end.
        num_images: in the split.
        class_map: which classes are compared, and what the labels mean; None: all, and the model's own.

    Raises:
        EvaluationError: an image is missing, comes twice or has no class, or logits are not finite.
    """
    parts = [_answers(*rows, class_map) for rows in _one_behind(predict, dataset, strategy)]
    answers = _joined(_unpacked(text) for text in exchange(strategy, _packed(_joined(parts))))
    order = np.argsort(answers.index, kind="stable")
    answers = Answers(*(column[order] for column in answers))
    if not num_images or not np.array_equal(answers.index, np.arange(num_images)):
        raise EvaluationError(
            f"Every image counts once. Expected: {num_images} images, at least one. Received: {len(answers.index)}, "
            f"{len(np.unique(answers.index))} of them different"
        )
    return answers


def summarize(answers: Answers) -> dict:
    """`accuracy`, `top5_accuracy` (0..1; the latter is 1 where there are at most five classes), `loss`, `samples`."""
    count = len(answers.labels)
    return {
        "accuracy": int(np.count_nonzero(answers.ranks == 0)) / count,
        "top5_accuracy": int(np.count_nonzero(answers.ranks < TOP)) / count,
        "loss": math.fsum(answers.losses) / count,  # exact until it is rounded: no order of adding shows in it
        "samples": count,
    }


def per_class(answers: Answers, names: Sequence[str]) -> list[dict]:
    """For each class its name, its images and the share of them that is recognised; None where there is no image."""
    images = np.bincount(answers.labels, minlength=len(names)).tolist()
    hits = np.bincount(answers.labels[answers.ranks == 0], minlength=len(names)).tolist()
    return [
        {"class": name, "images": count, "accuracy": hit / count if count else None}
        for name, count, hit in zip(names, images, hits, strict=True)
    ]


def confusion(answers: Answers) -> np.ndarray:
    """Which classes are taken for which: int64 (pairs, 3): class, predicted class, images; pairs without are left out.

    As a table it would have millions of cells, most of them 0, where there are thousands of classes.
    """
    pairs, counts = np.unique(np.stack([answers.labels, answers.predicted], axis=1), axis=0, return_counts=True)
    return np.concatenate([pairs, counts[:, None]], axis=1)


def classification_results(
    predict: Callable,
    dataset: Iterable,
    strategy: tf.distribute.Strategy,
    num_images: int,
    class_map: ClassMap | None = None,
) -> tuple[dict, Answers]:
    """`summarize` of a pass over a split, with `seconds` and `images_per_second`, and the answers behind it.

    Args and errors: see `read_answers`.
    """
    start = time.monotonic()
    answers = read_answers(predict, dataset, strategy, num_images, class_map)
    seconds = time.monotonic() - start
    return {**summarize(answers), "seconds": seconds, "images_per_second": num_images / seconds}, answers


def _one_behind(predict: Callable, dataset: Iterable, strategy) -> Iterator[tuple[np.ndarray, ...]]:
    """The rows of each replica's batches; the devices compute the next ones while the host is at work on them."""
    waiting = None
    for batch in dataset:
        outputs = predict(batch)
        if waiting is not None:
            yield from _rows(waiting, strategy)
        waiting = outputs
    if waiting is not None:
        yield from _rows(waiting, strategy)


def _rows(outputs, strategy) -> Iterator[tuple[np.ndarray, ...]]:
    for replica in zip(*map(strategy.experimental_local_results, outputs), strict=True):
        yield tuple(np.asarray(value) for value in replica)


def _answers(logits, labels, index, weights, class_map: ClassMap | None) -> Answers:
    taken = weights > 0
    logits, labels, index = logits[taken], labels[taken].astype(np.int64), index[taken].astype(np.int64)
    _check(logits, labels, index)
    if class_map is not None:
        logits, labels = logits[:, class_map.columns], class_map.positions[labels]
    rows = np.arange(len(labels))
    right = logits[rows, labels][:, None]  # (B, 1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]  # (B, num_classes)
    ranks = np.count_nonzero((logits > right) | ((logits == right) & earlier), axis=1)
    wide = logits.astype(np.float64)
    best = wide.max(axis=1, keepdims=True)
    losses = np.log(np.exp(wide - best).sum(axis=1)) + best[:, 0] - wide[rows, labels]
    return Answers(labels, logits.argmax(axis=1), ranks.astype(np.int64), losses, index)


def _check(logits, labels, index) -> None:
    unknown = labels == UNKNOWN
    if unknown.any():
        raise EvaluationError(
            f"Evaluation needs the class of every image. Received: none for image {index[unknown][0]}"
        )
    broken = ~np.isfinite(logits).all(axis=1)
    if broken.any():
        raise EvaluationError(
            f"The classifier's logits must be finite. Received: NaN or infinity for image {index[broken][0]}. "
            "--precision=float32 shows whether the precision is to blame; else its training has failed."
        )


def _joined(parts: Iterable[Answers]) -> Answers:
    return Answers(*(np.concatenate(column) for column in zip(_NOTHING, *parts, strict=True)))


def _packed(answers: Answers) -> str:
    """As text, which is what hosts can send each other; no digit is lost."""
    return base64.b64encode(b"".join(column.tobytes() for column in answers)).decode()


def _unpacked(text: str) -> Answers:
    columns = np.frombuffer(base64.b64decode(text), np.int64).reshape(len(_NOTHING), -1)
    return Answers(*(column.view(empty.dtype) for column, empty in zip(columns, _NOTHING, strict=True)))


_NOTHING = Answers(*(np.zeros(0, np.float64 if name == "losses" else np.int64) for name in Answers._fields))
