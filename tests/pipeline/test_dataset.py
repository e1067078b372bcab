import functools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from fixtures.shard_sets import encode, write_shard_set

import pipeline
from pipeline.manifest import ManifestError
from pipeline.stats import ReadingStats
from pipeline.view_options import VIEWS, default_resize_size

OPTIONS = {"batch_size": 7, "image_size": 6, "channels": 1, "noise": {"noise": 4, "decoder_noise": 2}}
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def textured_set(tmp_path_factory):
    """20 labelled images of noise, of different sizes and formats, in 3 shards."""
    images = [
        encode(
            RANDOM.integers(0, 256, (10 + number % 3, 11, 3), dtype=np.uint8),
            ("PNG", "JPEG", "WEBP")[number % 3],
        )
        for number in range(20)
    ]
    return write_shard_set(
        tmp_path_factory.mktemp("textured"),
        images,
        shard_samples=[8, 5, 7],
        labels=[number % 2 for number in range(20)],
        classes=("even", "odd"),
    )


@pytest.fixture(scope="module", params=["host", pytest.param("graph", marks=pytest.mark.slow)])
def engine(request):
    return request.param


@pytest.fixture(scope="module")
def train_batches(textured_set, engine):
    """The first 9 training batches: 63 samples, 3 epochs and the beginning of a fourth."""
    return list(pipeline.load(textured_set, view="train", engine=engine, **OPTIONS).take(9).as_numpy_iterator())


@pytest.fixture(scope="module")
def eval_batches(numbered_set, engine):
    return list(pipeline.load(numbered_set, view="eval", engine=engine, **OPTIONS).as_numpy_iterator())


def test_every_sample_comes_once_in_each_epoch(textured_set, engine):
    dataset = pipeline.load(textured_set, view="pretrain", engine=engine, **OPTIONS | {"batch_size": 5}).take(12)
    indices = np.concatenate([features["index"] for features in dataset.as_numpy_iterator()])
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(indices[20 * epoch : 20 * epoch + 20]), np.arange(20))
    assert not np.array_equal(indices[:20], indices[20:40])


def test_labels_agree_with_the_index(train_batches):
    for features, labels in train_batches:
        np.testing.assert_array_equal(labels, features["index"] % 2)


def test_pixels_agree_with_the_index(numbered_set, engine):
    dataset = pipeline.load(numbered_set, view="pretrain", engine=engine, **OPTIONS)
    for features in dataset.take(6).as_numpy_iterator():  # 42 samples: an epoch, and part of the next
        pixels = features["image"]
        assert pixels.shape == (7, 6, 6, 1) and pixels.dtype == np.uint8
        expected = np.broadcast_to(5 * features["index"][:, None, None, None], pixels.shape)
        np.testing.assert_array_equal(pixels, expected)


def test_noise_is_uniform_and_differs_between_samples_epochs_and_names(train_batches):
    for name, length in OPTIONS["noise"].items():
        draws = np.concatenate([features[name] for features, _ in train_batches])
        assert draws.shape == (63, length) and draws.dtype == np.float32
        assert draws.min() >= 0 and draws.max() < 1
        assert len(np.unique(draws, axis=0)) == 63
        assert abs(draws.mean() - 0.5) < 0.1  # 3.9 standard deviations, .289 / sqrt(126)
    first = train_batches[0][0]
    assert not np.array_equal(first["noise"][:, :2], first["decoder_noise"])


@pytest.mark.parametrize("start_step", [2, 3, 6])  # batch 2 spans epochs 0 and 1; batch 6 begins in epoch 2
def test_a_resumed_stream_is_bit_identical(textured_set, engine, train_batches, start_step):
    resumed = pipeline.load(textured_set, view="train", engine=engine, start_step=start_step, **OPTIONS)
    resumed = list(resumed.take(3).as_numpy_iterator())
    tf.nest.map_structure(np.testing.assert_array_equal, resumed, train_batches[start_step : start_step + 3])


def by_sample(batches):
    """The rows of all batches, ordered by sample and, for several epochs of a sample, by their noise."""
    rows = tf.nest.map_structure(lambda *columns: np.concatenate(columns), *batches)
    features = rows[0] if isinstance(rows, tuple) else rows
    order = np.lexsort((features["noise"][:, 0], features["index"]))
    return tf.nest.map_structure(lambda column: column[order], rows)


def test_a_sample_is_the_same_whatever_the_batch_size(textured_set, engine, train_batches):
    dataset = pipeline.load(textured_set, view="train", engine=engine, **OPTIONS | {"batch_size": 21})
    large = list(dataset.take(3).as_numpy_iterator())
    tf.nest.map_structure(np.testing.assert_array_equal, by_sample(large), by_sample(train_batches))


@pytest.mark.parametrize(
    "view",
    [*(pytest.param(view, marks=pytest.mark.slow) for view in ("pretrain", "probe")), "train", "eval"],
)
def test_both_engines_give_the_same_batches(textured_set, view):
    load = functools.partial(pipeline.load, textured_set, view=view, **OPTIONS | {"channels": 3, "image_size": (5, 6)})
    for host, graph in zip(load(engine="host").take(4), load(engine="graph").take(4), strict=True):
        (host, *host_rest), (graph, *graph_rest) = ((b if isinstance(b, tuple) else (b,)) for b in (host, graph))
        difference = np.abs(host.pop("image").numpy().astype(int) - graph.pop("image").numpy())
        assert difference.max() <= 3 and difference.mean() < 0.5
        tf.nest.map_structure(np.testing.assert_array_equal, (host, host_rest), (graph, graph_rest))


@pytest.mark.slow
@pytest.mark.parametrize("crop", ["central", "fixed"])
def test_both_engines_give_the_same_crops_of_fixed_size(textured_set, crop):
    options = OPTIONS | {"view": "pretrain", "crop": crop, "channels": 3, "image_size": (5, 6), "resize_size": 9}
    batches = [pipeline.load(textured_set, engine=engine, **options).take(3) for engine in ("host", "graph")]
    for host, graph in zip(*batches, strict=True):
        difference = np.abs(host["image"].numpy().astype(int) - graph["image"].numpy())
        assert difference.max() <= 3 and difference.mean() < 0.5


# The data set of a host takes a tenth of a second to build, with the graph a second.
SLICES = {"host": (2, 6), "graph": (3,)}
STRETCHES = {"host": (1, 7), "graph": (1, 4)}


def test_the_slices_of_the_hosts_make_up_the_global_batches(textured_set, engine):
    options = OPTIONS | {"batch_size": 6, "engine": engine, "view": "train", "start_step": 2}
    whole = list(pipeline.load(textured_set, **options).take(3).as_numpy_iterator())
    for num_hosts in SLICES[engine]:
        hosts = [
            pipeline.load(textured_set, host=host, num_hosts=num_hosts, **options).take(3) for host in range(num_hosts)
        ]
        for batch, *parts in zip(whole, *(part.as_numpy_iterator() for part in hosts), strict=True):
            together = tf.nest.map_structure(lambda *columns: np.concatenate(columns), *parts)
            tf.nest.map_structure(np.testing.assert_array_equal, together, batch)


def test_evaluation_on_several_hosts_counts_every_sample_once(numbered_set, engine):
    options = OPTIONS | {"batch_size": 84, "engine": engine, "view": "eval"}
    for num_hosts in STRETCHES[engine]:
        hosts = [
            list(pipeline.load(numbered_set, host=host, num_hosts=num_hosts, **options).as_numpy_iterator())
            for host in range(num_hosts)
        ]
        assert len({len(batches) for batches in hosts}) == 1
        batches = [batch for host in hosts for batch in host]
        weights = np.concatenate([weights for _, _, weights in batches])
        indices = np.concatenate([features["index"] for features, _, _ in batches])
        np.testing.assert_array_equal(np.sort(indices[weights > 0]), np.arange(30))
        assert {features["image"].shape for features, _, _ in batches} == {(84 // num_hosts, 6, 6, 1)}


def test_another_seed_gives_another_order_and_other_noise(textured_set, engine, train_batches):
    features, _ = next(iter(pipeline.load(textured_set, view="train", engine=engine, seed=1, **OPTIONS)))
    assert not np.array_equal(features["index"], train_batches[0][0]["index"])
    assert not np.array_equal(features["noise"], train_batches[0][0]["noise"])


def test_evaluation_counts_every_sample_once_in_order(eval_batches):
    indices = np.concatenate([features["index"] for features, _, _ in eval_batches])
    labels = np.concatenate([labels for _, labels, _ in eval_batches])
    weights = np.concatenate([weights for _, _, weights in eval_batches])
    assert len(eval_batches) == 5 and len(weights) == 35
    np.testing.assert_array_equal(weights, [1.0] * 30 + [0.0] * 5)
    np.testing.assert_array_equal(indices[:30], np.arange(30))
    np.testing.assert_array_equal(labels[:30], np.arange(30) % 3)


def test_evaluation_is_padded_with_a_valid_image(eval_batches):
    features, labels, _ = eval_batches[-1]
    assert features["image"].shape == (7, 6, 6, 1)
    np.testing.assert_array_equal(features["index"], [28] + 6 * [29])
    np.testing.assert_array_equal(features["image"][:, 0, 0, 0], 5 * features["index"])
    np.testing.assert_array_equal(labels, features["index"] % 3)


def test_shapes_and_cardinality_are_static(numbered_set, engine):
    options = {"engine": engine} | OPTIONS | {"image_size": (5, 6), "channels": 3, "noise": {"noise": 4}}
    image = tf.TensorSpec((7, 5, 6, 3), tf.uint8)
    features = {
        "image": image,
        "index": tf.TensorSpec((7,), tf.int64),
        "noise": tf.TensorSpec((7, 4), tf.float32),
    }
    columns = (tf.TensorSpec((7,), tf.int32), tf.TensorSpec((7,), tf.float32))
    for view, spec, cardinality in [
        ("pretrain", features, tf.data.INFINITE_CARDINALITY),
        ("train", (features, columns[0]), tf.data.INFINITE_CARDINALITY),
        ("eval", (features, *columns), 5),
    ]:
        dataset = pipeline.load(numbered_set, view=view, **options)
        assert dataset.element_spec == spec
        assert dataset.cardinality() == cardinality


def test_a_set_without_labels_evaluates_with_minus_one_and_refuses_training(tmp_path):
    write_shard_set(tmp_path, [encode(np.zeros((6, 6), np.uint8))] * 3, shard_samples=[3])
    (_, labels, weights), *_ = pipeline.load(tmp_path, view="eval", **OPTIONS).as_numpy_iterator()
    np.testing.assert_array_equal(labels, [-1] * 7)
    assert weights.sum() == 3
    with pytest.raises(ValueError, match="needs labels.*made without classes"):
        pipeline.load(tmp_path, view="train", **OPTIONS)


@pytest.fixture
def corrupt_set(tmp_path):
    """9 images of noise in 2 shards; sample 5 is damaged where sharding does not look, in the compressed pixels."""
    images = [encode(RANDOM.integers(0, 256, (6, 6), dtype=np.uint8)) for _ in range(9)]
    images[5] = images[5][:50] + b"?" * 10 + images[5][60:]
    return write_shard_set(tmp_path, images, shard_samples=[4, 5])


@pytest.mark.parametrize("view", ["pretrain", "eval"])
def test_a_corrupt_sample_is_named(corrupt_set, engine, view):
    with pytest.raises(tf.errors.OpError, match=r"(Sample 5|'0*5').*train-000001.tar"):
        list(pipeline.load(corrupt_set, view=view, engine=engine, **OPTIONS).take(2))


def test_corrupt_samples_are_skipped_up_to_a_limit_and_counted(corrupt_set, engine):
    stats = ReadingStats(max_corrupt=1)
    options = OPTIONS | {"batch_size": 9, "engine": engine, "stats": stats}
    for features in pipeline.load(corrupt_set, view="pretrain", **options).take(3).as_numpy_iterator():
        assert sorted({*features["index"]}) == [0, 1, 2, 3, 4, 6, 7, 8]  # one of them twice
        twice = np.flatnonzero(features["index"] == np.bincount(features["index"]).argmax())
        np.testing.assert_array_equal(*features["image"][twice])
        np.testing.assert_array_equal(*features["noise"][twice])
    (name,) = stats.corrupt  # the same one in each epoch counts once
    assert "5'" in name and "train-000001.tar" in name
    ((features, _, weights),) = pipeline.load(corrupt_set, view="eval", **options).as_numpy_iterator()
    np.testing.assert_array_equal(weights, [1, 1, 1, 1, 1, 0, 1, 1, 1])


@pytest.mark.parametrize("sizes, expected", [((224, 224), 256), ((28, 28), 32), ((448, 448), 448), ((112, 224), 128)])
def test_default_resize_size(sizes, expected):
    assert default_resize_size(sizes) == expected


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1. Received: 0"),
        ({"batch_size": 2.5}, "`batch_size` must be an integer.* Received: 2.5"),
        ({"view": "test"}, "`view` must be one of pretrain, train, probe, eval. Received: 'test'"),
        ({"image_size": 0}, "`image_size` must be .* at least 1. Received: 0"),
        ({"image_size": (8, 8, 3)}, r"`image_size` must be one side or \(height, width\)"),
        ({"channels": 4}, "`channels` must be 1 .* or 3 .*Received: 4"),
        ({"seed": -1}, "`seed` must be .* at least 0. Received: -1"),
        ({"start_step": -1}, "`start_step` must be .* at least 0. Received: -1"),
        ({"noise": {"image": 4}}, "other than image, index. Received: 'image'"),
        ({"noise": {"noise": 0}}, r"`noise\['noise'\]` must be .* at least 1. Received: 0"),
        ({"min_area": 0.0}, "`min_area` must be above 0 and at most 1. Received: 0.0"),
        ({"prefetch": 0}, "`prefetch` must be .* at least 1. Received: 0"),
        ({"num_threads": 0}, "`num_threads` must be .* at least 1. Received: 0"),
        ({"engine": "gpu"}, "`engine` must be one of auto, host, graph. Received: 'gpu'"),
        ({"host": 2, "num_hosts": 2}, "`host` must be from 0 to num_hosts - 1. Received: host=2, num_hosts=2"),
        ({"num_hosts": 2}, "multiple of the hosts. Received: batch_size=7, num_hosts=2"),
        ({"shuffle_block_shards": 0}, "`shuffle_block_shards` must be .* at least 1. Received: 0"),
        ({"rand_augment": "rand-x9"}, "rand-x9"),
        ({"view": "eval", "rand_augment": "rand-m9-inc1"}, "`rand_augment` is for training"),
        ({"data_service": "grpc://a:1", "engine": "host"}, "leave out engine='host'"),
        ({"data_service": "grpc://a:1", "stats": ReadingStats(3)}, "`max_corrupt` must be 0. Received: 3"),
        ({"cache_dir": "/dev/null/cache"}, "cache"),
        (
            {"resize_size": 8},
            "`resize_size` is for view 'eval' and crops of fixed size, not for random",
        ),
        ({"view": "eval", "min_area": 0.5}, "`min_area` is for training"),
        ({"view": "eval", "crop": "fixed"}, "`crop` is for training"),
        ({"view": "train", "crop": "fixed"}, "crop='fixed' is for view 'pretrain'"),
        ({"view": "pretrain", "crop": "central", "min_area": 0.5}, "and takes no `min_area`.*min_area=0.5"),
        ({"view": "pretrain", "crop": "centre"}, "`crop` must be one of random, fixed, central. Received: 'centre'"),
        ({"view": "eval", "start_step": 1}, "`start_step` must be 0 for view 'eval'"),
        ({"view": "eval", "resize_size": 5}, "`resize_size` must be at least 6.*Received: 5"),
    ],
)
def test_an_argument_out_of_range_is_refused(numbered_set, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline.load(numbered_set, **{"view": "train"} | OPTIONS | options)


def test_an_unknown_split_is_refused(numbered_set):
    with pytest.raises(ManifestError, match="no split 'val'; its splits are: train"):
        pipeline.load(numbered_set, view="train", split="val", **OPTIONS)


@pytest.mark.parametrize("view", VIEWS)
def test_an_empty_split_is_refused(tmp_path, view):
    write_shard_set(tmp_path, [], shard_samples=[], classes=("a",))
    with pytest.raises(ValueError, match="'train' of .* holds no samples"):
        pipeline.load(tmp_path, view=view, **OPTIONS)


def test_an_unknown_name_of_the_package_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'loads'"):
        _ = pipeline.loads


def test_importing_the_package_and_the_manifest_does_not_import_tensorflow():
    code = "import sys, pipeline; pipeline.load_manifest; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
