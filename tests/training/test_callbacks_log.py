"""The rows of a run, evaluations between them, and the end of a run whose loss is no number."""

import json
import math
import types

import numpy as np
import pytest
import tensorflow as tf

from keras_mae.training.finite_loss import FiniteLoss, NonFiniteLossError
from keras_mae.training.memory import peak_memory
from keras_mae.training.metrics_log import append_row, read_rows
from keras_mae.training.periodic import Evaluation, Images
from keras_mae.training.run_log import RunLog
from keras_mae.training.step_log import StepLog


class Clock:
    """Time that passes when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


@pytest.fixture
def step_log(tmp_path, clock):
    with RunLog(tmp_path) as log:
        yield make_step_log(log)


def make_step_log(log, start=2):
    step_log = StepLog(
        start,
        10,
        log=log,
        every=3,
        schedule=lambda step: step / 100,
        batch_size=4,
        samples=8,
        reading=lambda: {"corrupt": 2},
    )
    step_log.set_model(types.SimpleNamespace(data_wait_seconds=0.0))
    step_log.on_train_begin()
    return step_log


def take_step(step_log, clock, seconds, loss=1.0, wait=0.0):
    step_log.on_train_batch_begin(0)
    clock.now += seconds
    step_log.model.data_wait_seconds += wait
    step_log.on_train_batch_end(0, {"loss": loss})


def test_rows_come_at_multiples_and_at_the_end_with_their_own_loss(step_log, clock, tmp_path):
    for loss in range(8):
        take_step(step_log, clock, 0.5, loss)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"], row["epoch"]) for row in rows] == [
        (3, 0.0, 1.5),
        (6, 3.0, 3.0),
        (9, 6.0, 4.5),
        (10, 7.0, 5.0),
    ]
    assert [row["learning_rate"] for row in rows] == [0.02, 0.05, 0.08, 0.09]
    assert all(row["corrupt"] == 2 and row["memory_gb"] > 0 for row in rows)


def test_rates_are_of_steps_and_pauses_are_counted_apart(step_log, clock, tmp_path):
    take_step(step_log, clock, 8.0)  # 4 images in 8 s
    for _ in range(3):
        clock.now += 10.0  # an evaluation, say
        take_step(step_log, clock, 0.5, wait=0.1)
    first, second = read_rows(tmp_path / "metrics.jsonl")
    assert (first["images_per_second"], first["pause_seconds"], first["seconds"]) == (0.5, 0.0, 8.0)
    assert (second["images_per_second"], second["pause_seconds"], second["seconds"]) == (8.0, 30.0, 39.5)
    assert second["data_wait"] == pytest.approx(0.2)


def test_the_time_of_a_run_goes_on_where_its_last_row_was(tmp_path, clock):
    append_row(tmp_path / "metrics.jsonl", {"step": 3, "loss": 1.0, "seconds": 70.5})
    append_row(tmp_path / "metrics.jsonl", {"step": 3, "val_loss": 1.0})
    with RunLog(tmp_path) as log:
        step_log = make_step_log(log, start=5)
        take_step(step_log, clock, 2.0)
    assert read_rows(tmp_path / "metrics.jsonl")[-1]["seconds"] == 72.5


def test_time_spent_waiting_for_data_is_advised_on_once(step_log, clock, capsys):
    for _ in range(8):
        take_step(step_log, clock, 1.0, wait=0.5)
    assert capsys.readouterr().err.count("NOTE: 50% of the time training waits for images") == 1


def test_the_progress_line_has_what_a_user_watches(step_log, clock, capsys):
    for _ in range(8):
        take_step(step_log, clock, 0.5, loss=0.123456, wait=0.1)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("step 10/10  loss 0.1235  lr 9.00e-02  8.0 images/s  data wait 20%  memory ")
    assert line.endswith(" GB  ETA 0:00:00")


def test_memory_is_the_peak_of_the_process():
    before = peak_memory()["memory_gb"]
    block = np.ones(60_000_000, "float32")  # 240 MB
    del block
    assert 0.05 < before <= peak_memory()["memory_gb"] < 1000
    assert "gpu_memory_gb" not in peak_memory()  # tests see none


def test_memory_of_the_fullest_gpu_is_told(monkeypatch):
    gpus = [types.SimpleNamespace(name="GPU:0"), types.SimpleNamespace(name="GPU:1")]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: gpus)
    info = {"GPU:0": {"current": 1, "peak": 4 * 10**9}, "GPU:1": {"current": 1, "peak": 5 * 10**9}}
    monkeypatch.setattr(tf.config.experimental, "get_memory_info", info.get)
    assert peak_memory()["gpu_memory_gb"] == 5.0


def test_evaluations_and_pictures_reach_every_log(tmp_path):
    seen = []
    tracker = types.SimpleNamespace(
        scalars=lambda step, figures: seen.append((step, figures)),
        images=lambda step, images: seen.append((step, sorted(images))),
        close=lambda failed: seen.append(f"failed: {failed}"),
    )
    with RunLog(tmp_path, tracker) as log:
        evaluation = Evaluation(0, 5, log=log, every=2, evaluate=lambda: {"loss": 0.5, "samples": 9})
        images = Images(0, 5, log=log, every=4, draw=lambda: {"halves": np.zeros((2, 8, 8, 1), "uint8")})
        for batch in range(5):
            evaluation.on_train_batch_end(batch)
            images.on_train_batch_end(batch)
    rows = [{"step": step, "val_loss": 0.5} for step in (2, 4, 5)]
    assert read_rows(tmp_path / "metrics.jsonl") == rows
    losses, pictures = {"val_loss": 0.5}, ["halves"]
    assert seen == [(2, losses), (4, losses), (4, pictures), (5, losses), (5, pictures), "failed: False"]
    assert events(tmp_path / "tensorboard") == {(step, "val_loss") for step in (2, 4, 5)} | {
        (4, "halves"),
        (5, "halves"),
    }


def events(folder):
    """(step, name) of all that a TensorBoard folder holds."""
    found = set()
    for path in folder.iterdir():
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            found |= {(event.step, value.tag) for value in event.summary.value}
    return found


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run_and_names_its_batch(tmp_path, loss):
    callback = FiniteLoss(2, 10, run_dir=tmp_path, batch_samples=lambda batch: [100 * batch + i for i in range(20)])
    callback.on_train_batch_end(0, {"loss": 1.0})
    with pytest.raises(NonFiniteLossError) as error:
        callback.on_train_batch_end(1, {"loss": loss})
    path = tmp_path / "non_finite_loss.json"
    assert f"The loss of step 4 is {loss}. Its batch holds the samples 300, 301, 302, 303, 304, 305, 306, 307 ..." in (
        str(error.value)
    )
    assert f"and 12 more of the split (all of them: {path}). Try --precision=float32" in str(error.value)
    assert json.loads(path.read_text()) == {
        "step": 4,
        "batch": 3,
        "loss": str(loss),
        "samples": list(range(300, 320)),
    }


def test_few_samples_are_all_named(tmp_path):
    callback = FiniteLoss(0, 10, run_dir=tmp_path, batch_samples=lambda batch: [5, 3, 8])
    with pytest.raises(NonFiniteLossError, match="holds the samples 5, 3, 8 of the split"):
        callback.on_train_batch_end(0, {"loss": math.nan})


def test_without_knowing_samples_the_step_is_named(tmp_path):
    with pytest.raises(NonFiniteLossError, match="The loss of step 1 is nan. Try"):
        FiniteLoss(0, 10, run_dir=tmp_path).on_train_batch_end(0, {"loss": math.nan})
    assert list(tmp_path.iterdir()) == []
