"""Nearest neighbours equal scikit-learn's, in blocks of any size; features hold each image once; the command."""

import types

import numpy as np
import pytest
import tensorflow as tf
from fixtures.commands import run_command
from fixtures.shard_sets import encode, write_shard_set
from fixtures.tiny_vit import TINY_VIT
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

import pipeline
from keras_mae import knn
from keras_mae.evaluation.features import Features, make_encode, pooled, read_features
from keras_mae.evaluation.knn import KnnError, check_classes, knn_accuracies, nearest_neighbors, vote, watch_knn
from keras_mae.evaluation.results_file import read_results
from keras_mae.models import VisionTransformer
from pipeline.manifest import ShardSet, write_manifest
from tools.report_results import measured_figures

TEMPERATURE = 0.07


@pytest.fixture
def clouds():
    """300 training and 41 validation vectors in three overlapping classes, of lengths that do not matter."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 12))

    def draw(count):
        labels = rng.integers(0, 3, count)
        vectors = (centres[labels] + 1.5 * rng.normal(size=(count, 12))) * rng.uniform(0.1, 9, (count, 1))
        return Features(vectors.astype("float32"), labels.astype("int32"), np.arange(count))

    return draw(300), draw(41)


@pytest.mark.parametrize(("bank_block", "query_block"), [(16384, 1024), (64, 16), (7, 41)])
def test_neighbours_equal_scikit_learns(clouds, bank_block, query_block):
    bank, queries = clouds
    similarities, rows = nearest_neighbors(bank.vectors, queries.vectors, 20, bank_block, query_block)
    oracle = NearestNeighbors(n_neighbors=20, metric="cosine", algorithm="brute").fit(bank.vectors.astype("float64"))
    distances, expected = oracle.kneighbors(queries.vectors.astype("float64"))
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(similarities, 1 - distances, atol=1e-6)


def test_all_training_images_may_be_neighbours(clouds):
    bank, queries = clouds
    _, rows = nearest_neighbors(bank.vectors, queries.vectors, 300, bank_block=128)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(300), (41, 1)))


def test_of_equal_neighbours_the_first_are_taken():
    bank = np.ones((6, 4), "float32")
    _, rows = nearest_neighbors(bank, np.ones((2, 4), "float32"), 3, bank_block=2)
    np.testing.assert_array_equal(rows, [[0, 1, 2], [0, 1, 2]])


def test_votes_and_accuracies_equal_scikit_learns_for_every_k(clouds):
    bank, queries = clouds
    ks = (1, 10, 20, 100, 200)
    accuracies = knn_accuracies(bank, queries, ks, TEMPERATURE)
    similarities, rows = nearest_neighbors(bank.vectors, queries.vectors, max(ks))
    for k in ks:
        oracle = KNeighborsClassifier(
            k, weights=lambda distances: np.exp((1 - distances) / TEMPERATURE), metric="cosine", algorithm="brute"
        ).fit(bank.vectors, bank.labels)
        ours = vote(similarities[:, :k], bank.labels[rows[:, :k]], 3, TEMPERATURE)
        np.testing.assert_array_equal(ours, oracle.predict(queries.vectors))
        assert accuracies[k] == pytest.approx(oracle.score(queries.vectors, queries.labels))
    assert len(set(accuracies.values())) > 1


def test_a_low_temperature_leaves_the_vote_to_the_nearest():
    similarities = np.array([[0.9, 0.8, 0.8, 0.8]], "float32")
    labels = np.array([[1, 0, 0, 0]])
    assert vote(similarities, labels, 2, temperature=0.001) == [1]
    assert vote(similarities, labels, 2, temperature=1.0) == [0]


@pytest.mark.parametrize("k", [0, 7])
def test_an_impossible_k_is_refused(k):
    with pytest.raises(KnnError, match=f"Received: k={k}, 6 images"):
        nearest_neighbors(np.ones((6, 4), "float32"), np.ones((1, 4), "float32"), k)


def test_unknown_classes_are_refused(clouds):
    bank, queries = clouds
    bank.labels[:3] = -1
    with pytest.raises(KnnError, match="3 training images have none"):
        knn_accuracies(bank, queries, (5,))


def draw_stripes(count, seed=0):
    """8x8 grey images, uint8 (count, 8, 8); class = orientation of a stripe."""
    pictures = np.random.default_rng(seed).integers(0, 200, (count, 8, 8), dtype="uint8")
    for number, picture in enumerate(pictures):
        (picture if number % 2 else picture.T)[number % 8] += 55
    return pictures, np.arange(count, dtype="int32") % 2


def batches(images, labels, batch_size=4, first=0):
    """Batches as evaluation brings them, the last one padded with copies of weight 0."""
    found = []
    for start in range(0, len(images), batch_size):
        rows = np.arange(start, start + batch_size)
        weights = tf.constant((rows < len(images)).astype("float32"))
        rows = np.minimum(rows, len(images) - 1)
        features = {"image": tf.constant(images[rows][..., None]), "index": tf.constant(first + rows)}
        found.append((features, tf.constant(labels[rows]), weights))
    return found


@pytest.fixture(scope="module")
def encoder():
    encoder = VisionTransformer(**TINY_VIT)
    encoder.build()
    return encoder


@pytest.mark.parametrize("pool", ["class_token", "patch_mean"])
def test_features_hold_every_image_once_without_padding(encoder, pool):
    images, labels = draw_stripes(26)
    encode = make_encode(pooled(encoder, pool), tf.distribute.get_strategy())
    features = read_features(encode, reversed(batches(images, labels)))
    tokens = np.asarray(encoder(images[..., None]))
    expected = tokens[:, 0] if pool == "class_token" else tokens[:, 1:].mean(axis=1)
    np.testing.assert_array_equal(features.index, np.arange(26))
    np.testing.assert_array_equal(features.labels, labels)
    np.testing.assert_allclose(features.vectors, expected, atol=1e-5)


def index_only(batch):
    features, labels, weights = batch
    return tf.cast(features["index"], tf.float32)[:, None], labels, features["index"], weights


@pytest.mark.parametrize("samples", [1, 12, 14, 25, 26, 40])
def test_the_first_samples_are_taken_where_two_hosts_bring_a_stretch_each(samples):
    images, labels = draw_stripes(26)
    stretches = [batches(images[rows], labels[rows], first=rows.start) for rows in (slice(0, 13), slice(13, 26))]
    mixed = [tf.nest.map_structure(lambda *parts: tf.concat(parts, 0), *pair) for pair in zip(*stretches, strict=True)]
    features = read_features(index_only, mixed, samples)
    np.testing.assert_array_equal(features.index, np.arange(min(samples, 26)))
    np.testing.assert_array_equal(features.vectors[:, 0], features.index)


def test_no_more_is_read_than_the_first_samples_need():
    pending = iter(batches(*draw_stripes(26)))
    read_features(index_only, pending, samples=6)
    assert len(list(pending)) == 4  # of 7: two that hold samples 0 .. 7, and one that tells that there are no more


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="the data set has no sample"):
        read_features(index_only, [])


def test_an_unknown_pool_is_refused(encoder):
    with pytest.raises(ValueError, match="pool must be one of class_token, patch_mean. Received: 'max'"):
        pooled(encoder, "max")


def test_watching_gives_the_accuracy_of_an_encoder_as_it_is(encoder):
    train, val = draw_stripes(40), draw_stripes(12, seed=1)
    data = types.SimpleNamespace(in_order=lambda: batches(*train, 8), validation=lambda: batches(*val, 8))
    strategy = tf.distribute.get_strategy()
    evaluate = watch_knn(types.SimpleNamespace(encoder=encoder), data, strategy, samples=30)
    kept, found = encoder.get_weights(), []
    for scale in (0.0, 0.5):
        encoder.set_weights([weight + scale * np.random.normal(size=weight.shape) for weight in kept])
        bank, queries = (np.asarray(encoder(images[..., None]))[:, 0] for images, _ in (train, val))
        oracle = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine", algorithm="brute")
        oracle.fit(bank[:30], train[1][:30])
        found.append(evaluate())
        assert found[-1] == {"knn": pytest.approx(oracle.score(queries, val[1]))}
    encoder.set_weights(kept)
    assert found[0] != found[1]


def test_images_without_classes_are_seen_in_the_first_batch():
    images, labels = draw_stripes(7)
    check_classes(batches(images, labels), tf.distribute.get_strategy())
    with pytest.raises(KnnError, match="the first images of the split have none"):
        check_classes(batches(images, np.full(7, -1, "int32")), tf.distribute.get_strategy())


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """Shards: 26 images of `draw_stripes` in train, 7 in val, and 5 without classes."""
    folder, classes, splits = tmp_path_factory.mktemp("stripes"), ("across", "down"), {}
    for split, counts in (("train", [10, 16]), ("val", [7]), ("unlabelled", [5])):
        images, labels = draw_stripes(sum(counts), seed=len(splits))
        options = {} if split == "unlabelled" else {"labels": labels.tolist(), "classes": classes}
        files = [encode(image) for image in images]
        splits |= write_shard_set(folder, files, shard_samples=counts, split=split, **options).splits
    write_manifest(ShardSet(str(folder), classes, splits))
    return str(folder)


@pytest.fixture(scope="module")
def saved(encoder, tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "encoder.keras"
    encoder.save(path)
    return path


def test_the_command_writes_the_accuracy_for_each_k(stripes, encoder, saved, tmp_path, capsys):
    output = tmp_path / "results.json"
    flags = (f"--encoder={saved}", f"--data={stripes}", "--k=10,5,20", "--resize_size=8", f"--output={output}")
    assert run_command(knn, *flags, "--batch_size=3") == 0
    results = read_results(output)
    assert (results["train_samples"], results["samples"], list(results["knn"])) == (26, 7, ["5", "10", "20"])
    assert results["train_fingerprint"] == pipeline.load_manifest(stripes).fingerprint("train")
    train, val = draw_stripes(26), draw_stripes(7, seed=1)
    bank, queries = (np.asarray(encoder(images[..., None]))[:, 0] for images, _ in (train, val))
    for k, accuracy in results["knn"].items():
        oracle = KNeighborsClassifier(int(k), weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine")
        assert accuracy == pytest.approx(oracle.fit(bank, train[1]).score(queries, val[1]))
    assert "k=10   top-1" in capsys.readouterr().out
    shown = [(figure.protocol, figure.figure, figure.text.split(" ")[0]) for figure in measured_figures(output)]
    assert shown == [("kNN", f"top-1, k={k}", f"{100 * accuracy:.2f}") for k, accuracy in results["knn"].items()]


def test_without_an_output_the_results_lie_beside_the_encoder(stripes, saved):
    flags = (f"--encoder={saved}", f"--data={stripes}", "--k=5", "--resize_size=8", "--split=val", "--val_split=train")
    assert run_command(knn, *flags) == 0
    found = read_results(saved.parent / "evaluation" / "knn-train" / "results.json")
    assert found["structure"]["num_classes"] == 2 and found["run"] is None and len(found["model_fingerprint"]) == 64


REFUSED = {
    "k": (("--k=10,many",), "k takes numbers of neighbours, such as 10,20,100,200. Received: '10,many'"),
    "too many neighbours": (("--k=20,27",), "k must be at most the 26 images of split 'train'. Received: 27"),
    "one split": (("--val_split=train",), "split and val_split must differ"),
    "no classes": (("--val_split=unlabelled", "--k=5"), "the first images of the split have none"),
    "no such split": (("--split=test",), "test"),
    "no such encoder": (("--encoder=/nowhere.keras", "--k=5"), "There is no model at /nowhere.keras"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_command_refuses(name, stripes, saved, capsys):
    flags, sentence = REFUSED[name]
    assert run_command(knn, f"--encoder={saved}", f"--data={stripes}", "--resize_size=8", *flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error
