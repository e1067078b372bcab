"""A tf.data service on this machine: a dispatcher and two workers, in slow tests as processes of their own."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from fixtures.shard_sets import encode, write_shard_set

from keras_mae.commandline import CommandError
from pipeline.batching import batch_samples
from pipeline.data_service import count_workers, distribute_evaluation, distribute_training, take_batches
from pipeline.graph_reading import read_rows
from pipeline.order import ManifestOrder, ShuffledOrder
from tools.data_service import start_dispatcher, start_worker

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARD_SAMPLES = [3, 2, 4, 1, 3, 3, 3, 5, 2, 3, 1]


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("localhost", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


class Service:
    """A dispatcher and workers, started with the command that users have."""

    def __init__(self, num_workers):
        self._ports = free_ports(1 + num_workers)
        self._processes = {}
        self.address = f"grpc://localhost:{self._ports[0]}"
        workers = ",".join(f"localhost:{port}" for port in self._ports[1:])
        self._start(0, "dispatcher", f"--workers={workers}")
        self._wait(0)
        for number in range(num_workers):
            self.start_worker(number, wait=False)
        for number in range(num_workers):
            self._wait(1 + number)

    def start_worker(self, number, wait=True):
        self._start(1 + number, "worker", "--host=localhost", f"--dispatcher=localhost:{self._ports[0]}")
        if wait:
            self._wait(1 + number)

    def kill_worker(self, number):
        self._processes[1 + number].kill()
        self._processes[1 + number].wait()

    def close(self):
        for process in self._processes.values():
            process.kill()
            process.wait()
            process.stdout.close()

    def _start(self, number, *arguments):
        command = [sys.executable, "-m", "tools.data_service", *arguments, f"--port={self._ports[number]}"]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        if number in self._processes:
            self._processes[number].stdout.close()
        self._processes[number] = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def _wait(self, number):
        assert "runs at port" in self._processes[number].stdout.readline()


@pytest.fixture(scope="module")
def service_of_processes():
    with contextlib.closing(Service(num_workers=2)) as running:
        yield running


ONE_PROCESS = """
import sys, threading
from tools.data_service import start_dispatcher, start_worker

port, *others = map(int, sys.argv[1:])
parts = [start_dispatcher(port, [f"localhost:{other}" for other in others])]
parts += [start_worker(other, "localhost", f"localhost:{port}") for other in others]
print("all run", flush=True)
threading.Event().wait()
"""


@pytest.fixture(scope="module")
def service():
    """A service whose parts are one process: to start three of them takes long."""
    ports = free_ports(3)
    command = [sys.executable, "-c", ONE_PROCESS, *map(str, ports)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "all run\n"
        yield SimpleNamespace(address=f"grpc://localhost:{ports[0]}")
        process.kill()


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory):
    images = [encode(np.full((8, 8), 5 * number, np.uint8)) for number in range(30)]
    return write_shard_set(tmp_path_factory.mktemp("numbered"), images, shard_samples=SHARD_SAMPLES)


def decode(sample):
    image = tf.ensure_shape(tf.io.decode_png(sample["encoded"], channels=1), (8, 8, 1))
    return {"image": image, "index": sample["index"], "epoch": sample["epoch"]}


def training(shard_set, batch_size, start_step=0, prepare=decode):
    """Function of (host, num_hosts) to that host's batches."""
    split = shard_set.split(None)
    order = ShuffledOrder(SHARD_SAMPLES, seed=3, max_streams=2)  # each stream takes a second to build

    def make_batches(host, num_hosts):
        where = {"batch_size": batch_size, "start_step": start_step, "host": host, "num_hosts": num_hosts}
        rows = read_rows(shard_set, split, order, **where)
        return batch_samples(rows, prepare, split=split, batch_size=batch_size // num_hosts, drop_remainder=True)

    return make_batches


def assert_equal_batches(ours, theirs, count):
    ours, theirs = (list(dataset.take(count).as_numpy_iterator()) for dataset in (ours, theirs))
    assert len(ours) == len(theirs) == count
    for our, their in zip(ours, theirs, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, our, their)


@pytest.mark.parametrize(
    "batch_size, start_step",
    [(8, 5), pytest.param(5, 0, marks=pytest.mark.slow)],  # two workers cannot share 5: one of them works
)
def test_training_batches_are_those_made_here(service, shard_set, batch_size, start_step):
    make_batches = training(shard_set, batch_size, start_step)
    served = distribute_training(make_batches, service.address, batch_size=batch_size, start_step=start_step)
    assert served.element_spec == make_batches(0, 1).element_spec
    assert_equal_batches(served, make_batches(0, 1), 12)


@pytest.mark.slow
def test_each_host_gets_its_slices(service_of_processes, shard_set):
    make_batches = training(shard_set, 12)
    served = distribute_training(make_batches, service_of_processes.address, batch_size=12, host=2, num_hosts=3)
    assert_equal_batches(served, make_batches(2, 3), 6)


# 5 and 2 batches, the last ones of 2 and 14 samples
@pytest.mark.parametrize("batch_size", [7, pytest.param(16, marks=pytest.mark.slow)])
def test_evaluation_batches_are_those_made_here_in_every_pass(service, shard_set, batch_size):
    split = shard_set.split(None)

    def make_batches(part, num_parts):
        rows = read_rows(shard_set, split, ManifestOrder(SHARD_SAMPLES), batch_size=batch_size)
        rows = take_batches(rows, batch_size, part, num_parts)
        batches = batch_samples(rows, decode, split=split, batch_size=batch_size, drop_remainder=False)
        return batches.map(lambda batch: tf.nest.map_structure(pad, batch))

    def pad(column):
        missing = batch_size - tf.shape(column)[0]
        column = tf.concat([column, tf.repeat(column[-1:], missing, axis=0)], axis=0)
        return tf.ensure_shape(column, [batch_size, *column.shape[1:]])

    num_batches = -(-30 // batch_size)
    served = distribute_evaluation(make_batches, service.address, num_batches=num_batches)
    assert served.cardinality() == num_batches
    for _ in range(2):
        assert_equal_batches(served, make_batches(0, 1), num_batches)


def test_an_error_of_a_worker_arrives(service, shard_set):
    def fail_on_sample_7(sample):
        with tf.control_dependencies([tf.debugging.Assert(sample["index"] != 7, ["bad"])]):
            return decode(sample)

    make_batches = training(shard_set, 8, prepare=fail_on_sample_7)
    served = distribute_training(make_batches, service.address, batch_size=8)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Sample 7 of split train.*train-000002.tar"):
        list(served.take(5))


@pytest.mark.parametrize("address", ["localhost:5000", "grpc://localhost", "http://localhost:5000", "grpc://a:b"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="is grpc://HOST:PORT. Received"):
        count_workers(address)


def test_a_service_that_does_not_run_is_named():
    address = f"grpc://localhost:{free_ports(1)[0]}"
    with pytest.raises(ValueError, match=f"No data service answers at {address}"):
        count_workers(address)


def test_a_dispatcher_without_a_list_of_workers_is_refused():
    server = tf.data.experimental.service
    dispatcher = server.DispatchServer()
    address = dispatcher.target.removeprefix("grpc://")
    worker = server.WorkerServer(server.WorkerConfig(dispatcher_address=address))
    with pytest.raises(ValueError, match="does not know all its workers; start it with --workers"):
        count_workers(dispatcher.target)
    worker.stop()


def test_the_command_refuses_what_cannot_be_started():
    with pytest.raises(CommandError, match="--workers=HOST:PORT,... is missing"):
        start_dispatcher(5000, [])
    with pytest.raises(CommandError, match="--workers takes addresses such as machine1:5001, received 'machine1'"):
        start_dispatcher(5000, ["machine1"])
    with pytest.raises(CommandError, match="names a worker twice"):
        start_dispatcher(5000, ["machine1:5001", "machine1:5001"])
    with pytest.raises(CommandError, match="--dispatcher=HOST:PORT is missing"):
        start_worker(5001, "machine1", None)
    with pytest.raises(CommandError, match="--host takes addresses .* received 'grpc://machine1:5001'"):
        start_worker(5001, "grpc://machine1", "machine0:5000")
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=f"cannot start at port {port}"):
            start_dispatcher(port, ["localhost:5001"])


def test_a_worker_that_the_dispatcher_does_not_list_is_refused(service):
    (port,) = free_ports(1)
    with pytest.raises(CommandError, match="address is not configured"):
        start_worker(port, "localhost", service.address.removeprefix("grpc://"))


def test_missing_workers_are_counted():
    server = tf.data.experimental.service
    ports = free_ports(2)
    dispatcher = server.DispatchServer(
        server.DispatcherConfig(worker_addresses=[f"localhost:{port}" for port in ports])
    )
    with pytest.raises(ValueError, match="has no workers"):
        count_workers(dispatcher.target, wait_seconds=0.5)
    address = dispatcher.target.removeprefix("grpc://")
    config = server.WorkerConfig(address, worker_address=f"localhost:{ports[0]}", port=ports[0])
    worker = server.WorkerServer(config)
    with pytest.raises(ValueError, match="1 of the 2 workers of the data service .* are there"):
        count_workers(dispatcher.target, wait_seconds=2)
    worker.stop()


@pytest.mark.slow
def test_a_worker_that_dies_or_starts_again_ends_in_an_error_that_names_the_step(service_of_processes, shard_set):
    service = service_of_processes

    # Leaves the service as it found it.
    def served_from(step):
        make_batches = training(shard_set, 8, start_step=step)
        options = {"batch_size": 8, "start_step": step}
        return distribute_training(make_batches, service.address, **options), make_batches(0, 1)

    served, expected = (dataset.as_numpy_iterator() for dataset in served_from(step=100))
    np.testing.assert_array_equal(next(served)["index"], next(expected)["index"])
    service.kill_worker(1)
    step = 101
    with pytest.raises(tf.errors.InvalidArgumentError, match="is missing: worker 1 of 2") as failure:
        for batch in served:
            np.testing.assert_array_equal(batch["index"], next(expected)["index"])
            step += 1
    assert f"Step {step} is missing" in str(failure.value)
    service.start_worker(1)
    # What the run does then: it goes on from the step that is missing.
    served, expected = served_from(step)
    assert_equal_batches(served, expected, 3)
    batches = served.as_numpy_iterator()
    next(batches)
    service.kill_worker(0)
    service.start_worker(0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="is missing: worker 0 of 2"):
        list(batches)
