"""Every image counts once, on any number of replicas, and the figures equal plain NumPy's."""

import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import tensorflow as tf
from fixtures.shard_sets import encode, write_shard_set
from fixtures.tiny_vit import TINY_VIT

import pipeline
from keras_mae.evaluation.classification import (
    ClassMap,
    EvaluationError,
    classification_results,
    confusion,
    make_predict,
    per_class,
    read_answers,
    summarize,
)
from keras_mae.models import Classifier, VisionTransformer
from keras_mae.training.strategy import split_cpu
from keras_mae.training.trainer import weighted_means

CLASSES = 7


def as_given(batch):
    """Stands for `make_predict`: the batch's images are the logits."""
    features, labels, weights = batch
    return features["image"], labels, features["index"], weights


def answers_of(batches, num_images, class_map=None):
    return read_answers(as_given, batches, tf.distribute.get_strategy(), num_images, class_map)


def batches_of(logits, labels, size=4):
    """Batches filled up with copies of the first image, of weight 0."""
    for start in range(0, len(labels), size):
        rows = np.arange(start, start + size)
        weights = (rows < len(labels)).astype("float32")
        rows = np.where(weights > 0, rows, 0)
        yield {"image": logits[rows], "index": rows}, labels[rows].astype("int32"), weights


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(30, CLASSES)).astype("float32")


@pytest.fixture
def labels():
    return np.random.default_rng(1).integers(0, CLASSES - 1, 30)  # the last class has no image


def test_figures_equal_a_loop_over_the_images(logits, labels):
    answers = answers_of(batches_of(logits, labels), 30)
    hits = top = loss = 0
    table = np.zeros((CLASSES, CLASSES), int)
    for row, label in zip(logits.astype(float), labels, strict=True):
        best = sorted(range(CLASSES), key=lambda c: -row[c])
        hits += best[0] == label
        top += label in best[:5]
        loss -= np.log(np.exp(row[label]) / np.exp(row).sum())
        table[label, best[0]] += 1
    found = summarize(answers)
    assert (found["accuracy"], found["top5_accuracy"], found["samples"]) == (hits / 30, top / 30, 30)
    assert 0 < hits < top < 30
    assert found["loss"] == pytest.approx(loss / 30, rel=1e-12)
    ours = np.zeros_like(table)
    rows = confusion(answers)
    ours[rows[:, 0], rows[:, 1]] = rows[:, 2]
    np.testing.assert_array_equal(ours, table)
    names = [f"class {c}" for c in range(CLASSES)]
    for c, row in enumerate(per_class(answers, names)):
        count = table[c].sum()
        assert row == {"class": names[c], "images": count, "accuracy": table[c, c] / count if count else None}


def test_of_equal_logits_the_first_class_is_taken():
    logits = np.zeros((8, CLASSES), "float32")
    answers = answers_of(batches_of(logits, np.array([0, 1, 2, 3, 4, 5, 6, 0])), 8)
    np.testing.assert_array_equal(answers.predicted, 0)
    np.testing.assert_array_equal(answers.ranks, [0, 1, 2, 3, 4, 5, 6, 0])


def test_the_order_of_the_images_moves_no_digit():
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(1000, CLASSES)) * 10.0 ** rng.integers(-3, 3, (1000, 1))).astype("float32")
    labels = rng.integers(0, CLASSES, 1000)
    order = rng.permutation(1000)
    batch = [({"image": logits[order], "index": order}, labels[order], np.ones(1000, "float32"))]
    shuffled = answers_of(batch, 1000)
    assert summarize(shuffled) == summarize(answers_of(batches_of(logits, labels, 24), 1000))


def test_only_the_compared_classes_count(logits, labels):
    columns = np.array([1, 2, 5])
    labels = labels % 3
    class_map = ClassMap(columns, np.array([2, 0, 1]))  # the data set's classes are the model's 5, 1 and 2
    answers = answers_of(batches_of(logits, labels), 30, class_map)
    right = np.array([5, 1, 2])[labels]
    best = columns[logits[:, columns].argmax(axis=1)]
    assert summarize(answers)["accuracy"] == (best == right).mean()
    assert summarize(answers)["top5_accuracy"] == 1
    expected = np.log(np.exp(logits[:, columns]).sum(axis=1)) - logits[np.arange(30), right]
    np.testing.assert_allclose(answers.losses, expected, rtol=1e-5)


def test_an_image_that_is_missing_or_comes_twice_is_an_error(logits, labels):
    batches = list(batches_of(logits, labels))
    with pytest.raises(EvaluationError, match="Expected: 30 images, at least one. Received: 26, 26 of them different"):
        answers_of(batches[:3] + batches[4:], 30)
    with pytest.raises(EvaluationError, match="Received: 34, 30 of them different"):
        answers_of([*batches, batches[0]], 30)
    with pytest.raises(EvaluationError, match="Received: 0, 0 of them"):
        answers_of([], 0)


def test_an_image_without_a_class_or_with_logits_that_are_no_numbers_is_an_error(logits, labels):
    with pytest.raises(EvaluationError, match="Received: none for image 9"):
        answers_of(batches_of(logits, np.where(np.arange(30) == 9, -1, labels)), 30)
    logits[13, 2] = np.nan
    with pytest.raises(EvaluationError, match="NaN or infinity for image 13"):
        answers_of(batches_of(logits, labels), 30)


def noise_set(folder):
    """22 grey images of noise in three classes; batches of 4, 8 and 12 all need padding."""
    rng = np.random.default_rng(0)
    images = [encode(rng.integers(0, 255, (8, 8), dtype="uint8")) for _ in range(22)]
    labels = rng.integers(0, 3, 22).tolist()
    return write_shard_set(folder, images, shard_samples=(15, 7), labels=labels, classes=("a", "b", "c"))


def results_on(strategy, shard_set):
    """Figures and losses of a classifier with the same random head under any strategy, 4 images a replica."""
    with strategy.scope():
        model = Classifier(VisionTransformer(**TINY_VIT | {"depth": 1}, final_norm=False), 3)
        model.build()
        for number, weight in enumerate(model.weights):
            weight.assign(np.random.default_rng(number).normal(size=weight.shape) * 0.3)
    size = 4 * strategy.num_replicas_in_sync

    def load(host=0, num_hosts=1):
        where = {"host": host, "num_hosts": num_hosts, "num_threads": 1}
        return pipeline.load(shard_set, view="eval", batch_size=size, image_size=8, channels=1, resize_size=8, **where)

    dataset = pipeline.distribute(strategy, load)
    figures, answers = classification_results(make_predict(model, strategy), dataset, strategy, 22)
    return model, load, figures, answers


def test_results_equal_the_validation_of_training(tmp_path):
    shard_set = noise_set(tmp_path)
    model, load, figures, _ = results_on(tf.distribute.get_strategy(), shard_set)
    means = weighted_means(model, load())
    for name in ("samples", "accuracy", "top5_accuracy"):
        assert figures[name] == pytest.approx(means[name])
    assert figures["loss"] == pytest.approx(means["loss"], rel=1e-5)
    assert figures["images_per_second"] == pytest.approx(22 / figures["seconds"])


def print_results_on_one_two_and_three_replicas():
    """Body of a process of its own: devices are split before TensorFlow starts."""
    split_cpu(3, "mirrored")
    tf.config.experimental.enable_op_determinism()
    with tempfile.TemporaryDirectory() as folder:
        shard_set = noise_set(folder)
        for count in (1, 2, 3):
            strategy = tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(count)])
            assert strategy.num_replicas_in_sync == count
            _, _, figures, answers = results_on(strategy, shard_set)
            figures = {name: value for name, value in figures.items() if "second" not in name}
            print("RESULTS", json.dumps([figures, *(column.tolist() for column in answers)]))


def test_one_two_and_three_replicas_agree_to_the_last_digit():
    code = "from evaluation.test_classification import print_results_on_one_two_and_three_replicas as run; run()"
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join([tests, *filter(None, sys.path)])
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=280)
    assert process.returncode == 0, process.stderr[-3000:]
    one, two, three = (line for line in process.stdout.splitlines() if line.startswith("RESULTS"))
    assert one == two == three
    figures, *_, index = json.loads(one.removeprefix("RESULTS"))
    assert figures["samples"] == 22 and index == list(range(22))
    assert 0 < figures["accuracy"] < 1
