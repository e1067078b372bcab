"""When checkpoints are written, that a thread does it, and that training outlives a full disk."""

import errno
import os
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.tiny_vit import TINY_VIT

from keras_mae.models import MaskedAutoencoder, VisionTransformer
from keras_mae.training.adamw import AdamW
from keras_mae.training.checkpoint_writer import CheckpointWriter
from keras_mae.training.checkpointing import Checkpointing
from keras_mae.training.checkpoints import CheckpointError, Checkpoints
from keras_mae.training.trainer import Trainer


class SlowDisk:
    """Stands in for `Checkpoints`: reads what it is given only when the test lets it."""

    def __init__(self):
        self.may_read = threading.Event()
        self.read = {}

    def write(self, step, arrays, state, rest):
        self.may_read.wait()
        self.read = {path: array.copy() for path, array in arrays.items()}


class FullDisk(Checkpoints):
    """Fails the first `failures` times."""

    failures = 2

    def write(self, *arguments):
        if self.failures:
            object.__setattr__(self, "failures", self.failures - 1)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(*arguments)


class FakeWriter:
    """Notes what `Checkpointing` asks for."""

    is_free, failed_at = True, None

    def __init__(self):
        self.started, self.saved = [], []

    def start(self, step, state):
        self.started.append(step)

    def save(self, step, state):
        self.saved.append((step, state))


def checkpointing(writer, total_steps=10, *, every_steps=5, every_minutes=None, stop_requested=bool):
    callback = Checkpointing(
        0,
        total_steps,
        writer=writer,
        every_steps=every_steps,
        every_minutes=every_minutes,
        state=lambda step: {"data": step},
        stop_requested=stop_requested,
    )
    callback.on_train_begin()
    return callback


def take_steps(callback, count):
    for _ in range(count):
        callback.on_train_batch_end(0)


def one_variable(value=0.0):
    return [keras.Variable(np.full(3, value, "float32"), name="a")]


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@pytest.fixture(scope="module")
def training():
    """A trainer whose updates change variables in place, all its variables by path, and a function that takes steps."""
    model = MaskedAutoencoder(VisionTransformer(**TINY_VIT), 16, 1, 2)
    model.build()
    optimizer = AdamW(0.01)
    optimizer.build(model.trainable_variables)
    optimizer.compile_updates()
    trainer = Trainer(model, compiled="elementwise")
    trainer.compile(optimizer=optimizer, jit_compile=False)
    images = np.random.default_rng(0).integers(0, 255, (16, 8, 8, 1), dtype="uint8")
    batch = {"image": tf.constant(images), "noise": tf.random.stateless_uniform((16, 16), (1, 2))}

    def fit(steps, *callbacks):
        dataset = tf.data.Dataset.from_tensors(batch).repeat(steps)
        trainer.fit(dataset, callbacks=list(callbacks), verbose=0, shuffle=False)

    return trainer, [*model.weights, *optimizer.variables], fit


def values_of(variables):
    return {v.path: np.array(v.numpy()) for v in variables}


def test_steps_do_not_change_what_is_being_written(training):
    _, variables, fit = training
    fit(2)
    expected, disk = values_of(variables), SlowDisk()
    with CheckpointWriter(disk, variables) as writer:
        writer.start(2, {})
        fit(3)
        assert not writer.is_free
        disk.may_read.set()
    assert disk.read.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(disk.read[path], value, strict=True)
    now = values_of(variables)
    assert sum((now[path] != value).any() for path, value in expected.items()) > len(expected) / 2


def test_a_step_changes_nothing_that_is_not_saved(training):
    trainer, variables, fit = training
    saved, measured = set(map(id, variables)), {id(v) for metric in trainer.metrics for v in metric.variables}
    others = [v for v in trainer.variables if id(v) not in saved | measured]
    before = values_of(others)
    fit(1)
    for path, value in values_of(others).items():
        np.testing.assert_array_equal(value, before[path])


def test_the_thread_writes_the_bytes_that_a_plain_save_writes(training, tmp_path):
    _, variables, fit = training
    plain = Checkpoints(tmp_path / "plain", keep=9)
    with CheckpointWriter(Checkpoints(tmp_path / "thread", keep=9), variables) as writer:
        callback = checkpointing(writer, 3, every_steps=1)
        save = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: plain.save(callback.step, variables, {"data": callback.step})
        )
        fit(3, callback, save)
    written = Checkpoints(tmp_path / "thread").paths()
    assert written[-1].name == "step-00000003.npz"
    for path in written:
        assert path.read_bytes() == (tmp_path / "plain" / path.name).read_bytes()


def test_checkpoints_come_at_multiples_and_the_last_is_waited_for():
    writer = FakeWriter()
    take_steps(checkpointing(writer, 12), 12)
    assert (writer.started, writer.saved) == ([5, 10], [(12, {"data": 12})])


def test_one_that_is_due_while_another_is_written_comes_when_the_thread_is_free():
    writer = FakeWriter()
    callback = checkpointing(writer, 30)
    take_steps(callback, 5)
    writer.is_free = False
    take_steps(callback, 12)  # two are due meanwhile
    writer.is_free = True
    take_steps(callback, 5)
    assert writer.started == [5, 18, 20]


def test_minutes_count_from_the_last_checkpoint(clock):
    writer = FakeWriter()
    callback = checkpointing(writer, 100, every_steps=7, every_minutes=0.5)
    for _ in range(15):
        clock[0] += 10
        take_steps(callback, 1)
    assert writer.started == [3, 6, 7, 10, 13, 14]


def test_one_that_failed_is_tried_again_after_a_minute(clock):
    writer = FakeWriter()
    callback = checkpointing(writer, 1000, every_steps=100)
    writer.failed_at = clock[0]
    for _ in range(10):
        clock[0] += 10
        take_steps(callback, 1)
        if writer.started:
            writer.failed_at = None
    assert writer.started == [6]


def test_a_request_to_stop_saves_and_stops():
    requested, writer = [], FakeWriter()
    callback = checkpointing(writer, stop_requested=lambda: bool(requested))
    take_steps(callback, 1)
    requested.append(True)
    with pytest.raises(KeyboardInterrupt):
        take_steps(callback, 1)
    assert writer.saved == [(2, {"data": 2})]


def test_a_worker_that_writes_nothing_stops_as_well():
    take_steps(checkpointing(None, 3, every_steps=1), 3)
    with pytest.raises(KeyboardInterrupt):
        take_steps(checkpointing(None, stop_requested=lambda: True), 1)


def test_training_outlives_a_full_disk(tmp_path, capsys):
    variables = one_variable()
    Checkpoints(tmp_path).save(1, variables, {})
    with CheckpointWriter(FullDisk(tmp_path), variables) as writer:
        for step, variable_value in ((2, 2.0), (3, 3.0), (4, 4.0)):
            variables[0].assign(np.full(3, variable_value))
            writer.start(step, {})
            assert writer._task.result() is None or writer.failed_at is not None
        assert writer.failed_at is None
    assert [p.name for p in Checkpoints(tmp_path).paths()] == ["step-00000001.npz", "step-00000004.npz"]
    said = capsys.readouterr().err
    assert f"WARNING: the checkpoint of step 2 could not be written to {tmp_path}: No space left on device." in said
    assert said.count("WARNING") == 2


def test_the_last_state_is_tried_again(tmp_path):
    with CheckpointWriter(FullDisk(tmp_path), one_variable(5.0), pause=0.0) as writer:
        writer.save(7, {"data": 7})
    fresh = one_variable()
    assert Checkpoints(tmp_path).restore(fresh) == {"data": 7, "step": 7}
    assert (fresh[0].numpy() == 5.0).all()


def test_a_last_state_that_cannot_be_saved_is_an_error(tmp_path):
    disk = FullDisk(tmp_path)
    Checkpoints(tmp_path).save(4, one_variable(), {})
    object.__setattr__(disk, "failures", 99)
    sentence = (
        "state of step 7 could not be saved in .*: No space left on device. The newest checkpoint is step-00000004"
    )
    with CheckpointWriter(disk, one_variable(), pause=0.0) as writer, pytest.raises(CheckpointError, match=sentence):
        writer.save(7, {})


def test_leaving_waits_for_the_thread_also_when_training_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), CheckpointWriter(Checkpoints(tmp_path), one_variable()) as writer:
        writer.start(1, {})
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.npz"]


def test_a_fault_of_the_thread_is_not_taken_for_a_full_disk(tmp_path):
    with CheckpointWriter(Checkpoints(tmp_path), one_variable()) as writer:
        writer.start(1, {"data": object()})  # no JSON
        with pytest.raises(TypeError, match="not JSON serializable"):
            writer.save(2, {})


def test_variables_that_share_a_path_are_refused_before_the_first_step(tmp_path):
    with pytest.raises(CheckpointError, match="share a path"):
        CheckpointWriter(Checkpoints(tmp_path), [*one_variable(), *one_variable()])
