"""Which replica gets which part of a batch, on one host and on several."""

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import pipeline
from pipeline.distribution import replica_batches

OPTIONS = {"batch_size": 12, "image_size": 8, "channels": 1}


def load(numbered_set, view, **options):
    return functools.partial(pipeline.load, numbered_set, view=view, **OPTIONS | options)


def host_context(host, num_hosts, num_replicas):
    return tf.distribute.InputContext(num_hosts, host, num_replicas)


@pytest.mark.parametrize("view", ["train", "eval"])
def test_one_replica_gets_the_batches_as_they_are(numbered_set, view):
    expected = list(load(numbered_set, view)().take(3).as_numpy_iterator())
    dataset = pipeline.distribute(tf.distribute.get_strategy(), load(numbered_set, view))
    assert dataset.cardinality().numpy() == (3 if view == "eval" else tf.data.INFINITE_CARDINALITY)
    tf.nest.map_structure(np.testing.assert_array_equal, list(dataset.take(3).as_numpy_iterator()), expected)


@pytest.mark.parametrize("num_hosts, num_replicas", [(1, 4), (2, 4), (2, 6), (3, 3)])
def test_replica_r_gets_the_r_th_slice_of_each_global_batch(numbered_set, num_hosts, num_replicas):
    make = load(numbered_set, "train")
    per_host = num_replicas // num_hosts
    hosts = [replica_batches(make, host_context(h, num_hosts, num_replicas)) for h in range(num_hosts)]
    parts = [list(host.take(3 * per_host).as_numpy_iterator()) for host in hosts]
    for step, batch in enumerate(make().take(3).as_numpy_iterator()):
        replicas = [part for host in parts for part in host[step * per_host : (step + 1) * per_host]]
        assert all(len(labels) == 12 // num_replicas for _, labels in replicas)
        whole = tf.nest.map_structure(lambda *columns: np.concatenate(columns), *replicas)
        tf.nest.map_structure(np.testing.assert_array_equal, whole, batch)


@pytest.mark.parametrize("num_hosts, num_replicas", [(1, 2), (2, 4), (3, 6)])
def test_evaluation_covers_every_sample_once_in_as_many_batches_for_each_replica(numbered_set, num_hosts, num_replicas):
    make = load(numbered_set, "eval")
    hosts = [replica_batches(make, host_context(h, num_hosts, num_replicas)) for h in range(num_hosts)]
    batches = [list(host.as_numpy_iterator()) for host in hosts]
    assert {len(host) for host in batches} == {num_replicas // num_hosts * 3}  # 30 samples in batches of 12
    seen = [features["index"][weights > 0] for host in batches for features, _, weights in host]
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(30))


@pytest.mark.parametrize("num_hosts", [1, 2])
def test_shapes_are_static_and_training_has_no_end(numbered_set, num_hosts):
    dataset = replica_batches(load(numbered_set, "train"), host_context(0, num_hosts, 4))
    assert dataset.element_spec[0]["image"].shape == (3, 8, 8, 1)
    assert dataset.cardinality().numpy() == tf.data.INFINITE_CARDINALITY


def test_replicas_that_do_not_divide_the_batch_are_refused(numbered_set):
    with pytest.raises(ValueError, match=r"multiple of them. Received: batch_size=12, replicas=8"):
        replica_batches(load(numbered_set, "train"), host_context(1, 2, 8))


def test_hosts_that_do_not_divide_the_batch_are_refused(numbered_set):
    with pytest.raises(ValueError, match="multiple of the hosts. Received: batch_size=12, num_hosts=5"):
        replica_batches(load(numbered_set, "train"), host_context(0, 5, 5))


MIRRORED = """
import functools, sys
import numpy as np, tensorflow as tf
import pipeline

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def load(view, batch_size=6):
    return functools.partial(pipeline.load, sys.argv[1], view=view, batch_size=batch_size, image_size=8, channels=1)


def replica_indices(view, steps):
    step = tf.function(lambda batch: strategy.run(lambda part: part["index"], args=(batch,)))
    for number, batch in zip(range(steps), pipeline.distribute(strategy, load(view))):
        features = batch if view == "pretrain" else batch[0]
        yield [index.numpy().tolist() for index in strategy.experimental_local_results(step(features))]


for view in ("pretrain", "eval"):
    batches = [batch if view == "pretrain" else batch[0] for batch in load(view)().take(5)]
    expected = [[batch["index"].numpy()[:3].tolist(), batch["index"].numpy()[3:].tolist()] for batch in batches]
    assert list(replica_indices(view, 6 if view == "eval" else 5)) == expected, view
try:
    pipeline.distribute(strategy, load("pretrain", batch_size=5))
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_mirrored_replicas_take_their_slices(numbered_set):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", MIRRORED, numbered_set.root]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Received: batch_size=5, replicas=2" in done.stdout
