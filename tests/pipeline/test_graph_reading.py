import dataclasses
import io
import os
import pathlib
import shutil
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from fixtures.shard_sets import encode, write_shard_set

from pipeline import order as orders
from pipeline.graph_plan import StreamsPlan, block_rows, permutation, stretch_blocks
from pipeline.graph_reading import read_rows
from pipeline.order import ManifestOrder, ShuffledOrder

IMAGES = [encode(np.full((4, 4 + number), number, np.uint8)) for number in range(8)]
ELEVEN_SHARDS = [3, 2, 4, 1, 3, 3, 3, 5, 2, 3, 1]
WITH_EMPTY_SHARDS = [0, 7, 0, 5, 0]


@pytest.fixture(scope="module")
def written_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    return write_shard_set(folder, IMAGES, shard_samples=[3, 1, 4], labels=[0, 1] * 4, classes=("a", "b"))


@pytest.fixture(scope="module")
def rows_in_order(written_set):
    """One pass over the set, built once: that takes a second, and files are read anew in each iteration."""
    return read(written_set)


@pytest.fixture
def shard_set(written_set, tmp_path):
    """The set, which a test may damage."""
    shutil.copytree(written_set.root, tmp_path / "kept")
    yield written_set
    shutil.copytree(tmp_path / "kept", written_set.root, dirs_exist_ok=True)


def read(shard_set, order=None, *, batch_size=4, **options):
    split = shard_set.split(None)
    order = order or ManifestOrder([shard.samples for shard in split.shards])
    return read_rows(shard_set, split, order, batch_size=batch_size, **options)


def first_rows(dataset, count=None):
    return list(dataset.take(-1 if count is None else count).as_numpy_iterator())


def positions_of(order, steps, batch_size, host=0, num_hosts=1):
    """Places in the endless sequence of what a host uses in some steps, as `ShuffledOrder.rows` says."""
    positions = []
    for step in steps:
        first, count = order.rows(step, batch_size, host, num_hosts)
        for stream in range(order.num_streams):
            positions += [(first[stream] + i) * order.num_streams + stream for i in range(count[stream])]
    return np.array(positions)


def indices_at(order, positions):
    """The sequence's samples at some positions, from `ShuffledOrder.indices`."""
    epochs = {epoch: order.indices(epoch) for epoch in np.unique(positions // order.samples).tolist()}
    return [epochs[p // order.samples][p % order.samples] for p in positions.tolist()]


def planned_indices(order, steps, batch_size, host=0, num_hosts=1):
    """What a host reads in some steps, as the graph plans it, without the files."""
    plan = StreamsPlan(order, batch_size=batch_size, start_step=steps[0], host=host, num_hosts=num_hosts)
    starts = tf.constant(np.cumsum(order.shard_samples) - order.shard_samples)

    def samples_of(block):
        slot, row = plan.rows(block)
        return tf.data.Dataset.from_tensor_slices(tf.gather(starts, tf.gather(block["shard"], slot)) + row)

    streams = [plan.blocks(stream).flat_map(samples_of) for stream in plan.streams]
    woven = tf.data.Dataset.choose_from_datasets(streams, plan.choices())
    return [int(index) for index in woven.take(len(steps) * batch_size // num_hosts).as_numpy_iterator()]


@pytest.mark.parametrize("epoch, stream, block", [(0, 0, 0), (3, 8, 5), (2**23 + 1, 4, 2**24 - 1)])
def test_a_permutation_in_the_graph_is_that_of_order(epoch, stream, block):
    ours = permutation(
        tf.constant(50, tf.int64), seed=2**63 - 1, epoch=tf.constant(epoch, tf.int64), stream=stream, block=block
    )
    expected = orders.permutation(50, seed=2**63 - 1, epoch=epoch, stream=stream, block=block)
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    "shard_samples, options, batch_size, num_hosts, start_step",
    [
        pytest.param(ELEVEN_SHARDS, {}, 8, 2, 0, marks=pytest.mark.slow),  # 8 streams, 4 for each host
        (ELEVEN_SHARDS, {}, 9, 3, 5),  # hosts share streams, and batches differ in their division into streams
        (ELEVEN_SHARDS, {"shuffle_block_shards": 12, "max_streams": 4}, 12, 4, 10**6),  # 4 streams, 3 shards a block
        (WITH_EMPTY_SHARDS, {"shuffle_block_shards": 2}, 6, 2, 3),  # 2 streams of parts of one shard
        (WITH_EMPTY_SHARDS, {"max_streams": 1}, 5, 1, 2),  # 1 stream, all in one block
    ],
)
def test_every_host_plans_what_the_order_says(shard_samples, options, batch_size, num_hosts, start_step):
    order = ShuffledOrder(shard_samples, seed=batch_size, **options)
    steps = range(start_step, start_step + 9)  # more than two epochs
    for host in range(num_hosts):
        expected = indices_at(order, positions_of(order, steps, batch_size, host, num_hosts))
        assert planned_indices(order, steps, batch_size, host, num_hosts) == expected


def test_a_host_reads_only_the_streams_that_it_uses():
    order = ShuffledOrder(ELEVEN_SHARDS, seed=0)
    streams = [StreamsPlan(order, batch_size=16, start_step=1, host=host, num_hosts=4).streams for host in range(4)]
    assert streams == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_seeking_reads_no_earlier_block():
    order = ShuffledOrder(ELEVEN_SHARDS, seed=0)
    plan = StreamsPlan(order, batch_size=8, start_step=100, host=0, num_hosts=1)
    for stream in plan.streams:
        block = next(iter(plan.blocks(stream)))
        place = order.places(800)[stream]
        assert block["place"] <= place < block["place"] + tf.reduce_sum(block["count"])


@pytest.mark.parametrize("num_hosts", [1, 2, 3])
def test_hosts_divide_one_pass_as_the_order_says(num_hosts):
    order = ManifestOrder(WITH_EMPTY_SHARDS)
    for host in range(num_hosts):
        blocks = list(stretch_blocks(order, host, num_hosts))
        expected = list(order.blocks(host, num_hosts))
        assert [int(block["shard"][0]) for block in blocks] == [int(block.shards[0]) for block in expected]
        for block, theirs in zip(blocks, expected, strict=True):
            np.testing.assert_array_equal(block_rows(block)[1], theirs.row)


def test_samples_are_the_bytes_and_labels_that_were_written(shard_set):
    samples = first_rows(read(shard_set, labels="required"))
    assert [sample["encoded"] for sample in samples] == IMAGES
    assert [sample["label"] for sample in samples] == [0, 1] * 4
    assert [sample["index"] for sample in samples] == list(range(8))
    assert [sample["epoch"] for sample in samples] == [0] * 8


@pytest.mark.parametrize("max_streams", [1, 2])  # one block of three shards; blocks of one shard
def test_shuffled_samples_come_with_their_index_epoch_and_label(shard_set, max_streams):
    order = ShuffledOrder([3, 1, 4], seed=1, shuffle_block_shards=4 if max_streams == 1 else 2, max_streams=max_streams)
    positions = positions_of(order, range(5, 9), 4)
    samples = first_rows(read(shard_set, order, start_step=5, labels="required"), 16)
    assert [sample["index"] for sample in samples] == indices_at(order, positions)
    assert [sample["epoch"] for sample in samples] == (positions // 8).tolist()
    assert all(sample["encoded"] == IMAGES[sample["index"]] for sample in samples)
    assert all(sample["label"] == sample["index"] % 2 for sample in samples)


def test_a_host_reads_its_slices(shard_set):
    order = ShuffledOrder([3, 1, 4], seed=1)
    samples = first_rows(read(shard_set, order, host=1, num_hosts=2), 8)
    assert [s["index"] for s in samples] == indices_at(order, positions_of(order, range(4), 4, 1, 2))
    assert all(sample["encoded"] == IMAGES[sample["index"]] for sample in samples)
    samples = first_rows(read(shard_set, host=1, num_hosts=2))
    assert [sample["encoded"] for sample in samples] == IMAGES[4:]


def test_no_python_is_in_the_graph(shard_set):
    dataset = read(shard_set, ShuffledOrder([3, 1, 4], seed=0), labels="required")
    graph = tf.compat.v1.GraphDef.FromString(dataset._as_serialized_graph().numpy())
    nodes = [node.op for nodes in (graph.node, *(f.node_def for f in graph.library.function)) for node in nodes]
    assert "ReadFile" in nodes and "UnbatchDataset" in nodes
    assert not [op for op in nodes if "Py" in op or "Generator" in op]


def test_an_index_of_foreign_members_is_read_as_in_python(tmp_path):
    shard_set = write_shard_set(tmp_path, IMAGES[:1], shard_samples=[1])
    path, fields = tmp_path / "train-000000.tar", []
    contents = {"SEG.png": b"label map", "png": b"depth", "JPG": b"photo", "txt": b"caption", "CLS": b"7\n"}
    with tarfile.open(path, "w") as tar:
        for extension, content in contents.items():
            member = tarfile.TarInfo(f"a.{extension}")
            member.size = len(content)
            fields += [extension, str(tar.offset + 512), str(len(content)), member.name]
            tar.addfile(member, io.BytesIO(content))
    (tmp_path / "train-000000.idx").write_text(f"v1.2 1\n{' '.join(fields)}\n")
    shard = dataclasses.replace(shard_set.split(None).shards[0], bytes=path.stat().st_size)
    split = dataclasses.replace(shard_set.split(None), shards=(shard,))
    shard_set = dataclasses.replace(shard_set, classes=tuple("abcdefgh"), splits={"train": split})
    (sample,) = first_rows(read(shard_set, labels="required"))
    assert sample["encoded"] == b"photo" and sample["label"] == 7


def test_missing_labels_are_minus_one_where_optional_and_refused_where_required(tmp_path):
    unlabelled = write_shard_set(tmp_path, IMAGES, shard_samples=[8])
    with pytest.raises(ValueError, match="made without classes"):
        read(unlabelled, labels="required")
    unlabelled = dataclasses.replace(unlabelled, classes=("a",))
    assert all(sample["label"] == -1 for sample in first_rows(read(unlabelled, labels="optional")))
    with pytest.raises(tf.errors.InvalidArgumentError, match="00000000 in train-000000.tar has no label"):
        first_rows(read(unlabelled, labels="required"))


def test_a_label_beyond_the_classes_is_refused(shard_set):
    one_class = dataclasses.replace(shard_set, classes=("a",))
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="00000001 in train-000000.tar has the label 1, expected 0 to 0"
    ):
        first_rows(read(one_class, labels="optional"))


def test_a_label_that_is_no_number_is_refused(shard_set):
    path = pathlib.Path(shard_set.root, "train-000001.tar")
    at = int((path.with_suffix(".idx")).read_text().split()[3])  # "v1.2 1", then "cls OFFSET ..."
    content = bytearray(path.read_bytes())
    content[at] = ord("x")
    path.write_bytes(content)
    with pytest.raises(tf.errors.InvalidArgumentError, match="00000003 in train-000001.tar has the label x"):
        first_rows(read(shard_set, labels="required"))


def test_a_truncated_tar_is_refused(shard_set, rows_in_order):
    path = os.path.join(shard_set.root, "train-000002.tar")
    os.truncate(path, os.path.getsize(path) - 512)  # only padding is lost; all samples are still there
    with pytest.raises(tf.errors.InvalidArgumentError, match="Damaged shard.*train-000002.tar has .* expected"):
        first_rows(rows_in_order)


def test_a_vanished_shard_is_refused(shard_set, rows_in_order):
    os.remove(os.path.join(shard_set.root, "train-000000.tar"))
    with pytest.raises(tf.errors.NotFoundError, match="train-000000.tar"):
        first_rows(rows_in_order)


def test_a_shard_replaced_by_another_is_refused(shard_set, rows_in_order):
    for suffix in ("tar", "idx"):
        shutil.copy(*(os.path.join(shard_set.root, f"train-00000{number}.{suffix}") for number in (1, 2)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="train-000002.idx: .* v1.2 4, received v1.2 1"):
        first_rows(rows_in_order)


def test_a_shard_of_the_same_length_in_the_place_of_another_is_refused(shard_set, rows_in_order):
    path = pathlib.Path(shard_set.root, "train-000002.tar")
    content = path.read_bytes()
    path.write_bytes(content[1024:] + content[:1024])
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="train-000002.tar is not the one .*: sample 00000004 is not"
    ):
        first_rows(rows_in_order)


@pytest.mark.parametrize(
    "index, sentence",
    [
        ("v1.1 1\npng 0 1 x.png\n", "the first line should be v1.2 1, received v1.1 1"),
        ("", "the first line should be"),
        ("v1.2 1\npng 0 1 x.png\npng 0 1 x.png\n", "cut or edited: expected 1 samples, received 2"),
        ("v1.2 1\npng 0 1 x.png", "cut or edited: expected 1 samples, received 1"),
        ("v1.2 1\n\n", "damaged: expected extension, offset, size and name"),
        ("v1.2 1\npng 0 1\n", "damaged: expected extension, offset, size and name"),
        ("v1.2 1\npng 0 -1 x.png\n", "damaged: expected extension, offset, size and name"),
        ("v1.2 1\npng 0 99999999999999999999 x.png\n", "damaged: expected extension, offset, size and name"),
        ("v1.2 1\npng 512 999999999 x.png\n", "points outside its tar"),
        ("v1.2 1\ncls 0 1 x.cls png 0 1 y.png\n", "should have one name, received y.png"),
        ("v1.2 1\ncls 0 1 x.cls json 0 1 x.json\n", "sample 0 has no image"),
        ("v1.2 1\ncls 0 1 x.cls cls 0 1 x.cls png 0 1 x.png\n", "at most one label"),
    ],
)
def test_a_damaged_index_is_refused(shard_set, rows_in_order, index, sentence):
    with open(os.path.join(shard_set.root, "train-000001.idx"), "w") as file:
        file.write(index)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"train-000001.idx.*{sentence}"):
        first_rows(rows_in_order)


@pytest.mark.parametrize("root", ["https://example.org/set", "s3://bucket/set", "memory://set"])
def test_a_place_that_tensorflow_cannot_read_is_refused_before_reading(shard_set, root):
    with pytest.raises(ValueError, match=f"cannot read {root}; expected a local folder or a gs:// URL"):
        read(dataclasses.replace(shard_set, root=root))


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"num_hosts": 3}, "must divide `batch_size`. Received: 3 hosts for batches of 4"),
        ({"host": 2, "num_hosts": 2}, "from 0 to num_hosts - 1. Received: 2 of 2"),
        ({"labels": "all"}, "one of ignored, optional, required. Received: 'all'"),
    ],
)
def test_arguments_out_of_range_are_refused(shard_set, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(shard_set, ShuffledOrder([3, 1, 4], seed=0), **options)
    with pytest.raises(ValueError, match="`start_step` must be 0 in evaluation"):
        read(shard_set, start_step=1)
