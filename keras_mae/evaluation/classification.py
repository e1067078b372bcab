"""Accuracy of a classifier on a whole split, every image counted exactly once."""

import time

from keras_mae.training.trainer import weighted_means


def classification_results(classifier, dataset, strategy=None) -> dict:
    """Top-1 and top-5 accuracy and loss.

    Args:
        classifier: a `Classifier`.
        dataset: batches (features, labels, weights) with weight 0 on padding.
        strategy: of tf.distribute, over whose replicas the batches are split.

    Returns:
        `accuracy`, `top5_accuracy` (fractions 0..1; 1 where there are at most five classes), `loss` (cross-entropy
        without smoothing), `samples`, `images_per_second`.
    """
    start = time.monotonic()
    means = weighted_means(classifier, dataset, strategy)
    samples = int(means.pop("samples"))
    return {**means, "samples": samples, "images_per_second": samples / (time.monotonic() - start)}
