import dataclasses
import os

import numpy as np
import pytest
import tensorflow as tf
from fixtures.shard_sets import encode, write_shard_set

from pipeline.manifest import ManifestError, load_manifest
from pipeline.order import ManifestOrder, ShuffledOrder
from pipeline.reading import read_samples

IMAGES = [encode(np.full((4, 4 + number), number, np.uint8)) for number in range(8)]


@pytest.fixture
def shard_set(tmp_path):
    return write_shard_set(tmp_path, IMAGES, shard_samples=[3, 1, 4], labels=[0, 1] * 4, classes=("a", "b"))


def read(shard_set, order=None, **options):
    split = shard_set.split(None)
    order = order or ManifestOrder([shard.samples for shard in split.shards])
    return read_samples(shard_set, split, order, **options)


def test_samples_are_the_bytes_and_labels_that_were_written(shard_set):
    samples = list(read(shard_set, labels="required").as_numpy_iterator())
    assert [sample["encoded"] for sample in samples] == IMAGES
    assert [sample["label"] for sample in samples] == [0, 1] * 4
    assert [sample["index"] for sample in samples] == list(range(8))


def test_shuffled_samples_follow_the_order_from_any_position(shard_set):
    order = ShuffledOrder([3, 1, 4], seed=0)
    expected = np.concatenate([order.block(epoch).index for epoch in range(3)])
    for start in (0, 5, 8):
        samples = list(read(shard_set, order, start_position=start).take(12).as_numpy_iterator())
        assert [sample["index"] for sample in samples] == expected[start : start + 12].tolist()
        assert [sample["epoch"] for sample in samples] == [(start + i) // 8 for i in range(12)]
        assert all(sample["encoded"] == IMAGES[sample["index"]] for sample in samples)
        assert all(sample["label"] == -1 for sample in samples)


def test_missing_labels_are_minus_one_where_optional_and_refused_where_required(tmp_path):
    unlabelled = write_shard_set(tmp_path, IMAGES, shard_samples=[8])
    unlabelled = dataclasses.replace(unlabelled, classes=("a",))
    assert all(s["label"] == -1 for s in read(unlabelled, labels="optional").as_numpy_iterator())
    with pytest.raises(tf.errors.InvalidArgumentError, match="'00000000' in train-000000.tar has no label"):
        list(read(unlabelled, labels="required"))


def test_a_label_beyond_the_classes_is_refused(shard_set):
    one_class = dataclasses.replace(shard_set, classes=("a",))
    with pytest.raises(tf.errors.InvalidArgumentError, match="range from.*1.*expected 0 to 0"):
        list(read(one_class, labels="required"))


def test_a_truncated_tar_is_refused_when_the_manifest_is_loaded(shard_set):
    path = os.path.join(shard_set.root, "train-000002.tar")
    os.truncate(path, os.path.getsize(path) - 512)
    with pytest.raises(ManifestError, match="train-000002.tar has .* bytes, expected"):
        load_manifest(shard_set.root)


def test_a_tar_truncated_later_is_refused_when_it_is_read(shard_set):
    path = os.path.join(shard_set.root, "train-000002.tar")
    os.truncate(path, os.path.getsize(path) - 512)  # only padding is lost; all samples are still there
    with pytest.raises(tf.errors.InvalidArgumentError, match="Damaged shard.*train-000002.tar.*expected"):
        list(read(shard_set))


def test_a_damaged_index_is_refused(shard_set):
    path = os.path.join(shard_set.root, "train-000001.idx")
    with open(path, "a") as file:
        file.write("png 0 1 x.png\n")
    with pytest.raises(tf.errors.InvalidArgumentError, match="train-000001.idx was cut or edited"):
        list(read(shard_set))


def test_a_missing_shard_is_refused(shard_set):
    os.remove(os.path.join(shard_set.root, "train-000000.tar"))
    with pytest.raises(tf.errors.NotFoundError, match="train-000000.tar"):
        list(read(shard_set))
