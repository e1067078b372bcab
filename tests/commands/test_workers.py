"""Commands in several real processes on this machine: what they compute, who writes, and how they end together."""

import json
import re
import signal
import time

import numpy as np
import pytest
from fixtures.commands import TINY, TINY_DECODER, run_command
from fixtures.worker_processes import finish, run_workers, start, started

from keras_mae import pretrain
from keras_mae.training.metrics_log import read_rows

# Prints the loss that each worker sees, bit by bit, and runs the module of its first argument.
SPY = """
import runpy, sys
from keras_mae.training import finite_loss

after_step = finite_loss.FiniteLoss.after_step

def spy(self, logs):
    print("SPY", self.step, float(logs["loss"]).hex(), flush=True)
    after_step(self, logs)

finite_loss.FiniteLoss.after_step = spy
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
PRETRAIN = ("-c", SPY, "keras_mae.pretrain", *TINY, *TINY_DECODER, "--batch_size=12")
FINETUNE = ("-c", SPY, "keras_mae.finetune", *TINY, "--batch_size=12", "--from_scratch", "--drop_path_rate=.3")
FINETUNE += ("--erasing=.5", "--mixup=0", "--cutmix=0", "--rand_augment=")
# Sums over replicas are added up in another order: float32 rounding, of which 2e-7 was seen.
TOLERANCE = 1e-6

pytestmark = pytest.mark.timeout(900)  # several commands a test


def rows(run_dir, name):
    """step -> figure, of the rows that have it."""
    return {row["step"]: row[name] for row in read_rows(run_dir / "metrics.jsonl") if name in row}


def seen(text):
    """step -> loss, as a worker printed them."""
    return {int(step): float.fromhex(loss) for step, loss in re.findall(r"^SPY (\d+) (\S+)$", text, re.MULTILINE)}


def said(text):
    """What a worker has said by itself."""
    others = ("SPY", "I0000", "WARNING: All log messages before absl")  # of TensorFlow
    return [line for line in text.splitlines() if line and not line.startswith(others)]


def run_one(command, folder, *flags):
    """The command in one process."""
    folder.mkdir(exist_ok=True)
    finish([start(folder / "log", [*command, *flags])])


def assert_close(figures, expected):
    assert figures and list(figures) == list(expected)
    np.testing.assert_allclose(list(figures.values()), list(expected.values()), rtol=TOLERANCE)


def test_two_workers_pretrain_as_one_process_does(halves_set, tmp_path):
    command = [*TINY, *TINY_DECODER, f"--data={halves_set}", "--steps=3", "--eval_every_steps=3"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_command(pretrain, *command, f"--run_dir={one}") == 0
    texts = run_workers(2, ["-c", SPY, "keras_mae.pretrain", *command, f"--run_dir={two}"], tmp_path)
    for name in ("loss", "val_loss"):
        assert_close(rows(two, name), rows(one, name))
    assert [seen(text) for text in texts] == [rows(two, "loss")] * 2
    assert "finished 3 steps" in texts[0] and said(texts[1]) == []
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())


@pytest.fixture(scope="module", params=[PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def one_device(request, halves_set, tmp_path_factory):
    """A command, and the folder of its run on one device."""
    command = (*request.param, f"--data={halves_set}", "--steps=12", "--eval_every_steps=4", "--val_split=val")
    folder = tmp_path_factory.mktemp("one")
    run_one(command, folder, f"--run_dir={folder}/run")
    assert len(rows(folder / "run", "loss")) == 12 and len(rows(folder / "run", "val_loss")) == 3
    return command, folder / "run"


@pytest.mark.slow
def test_two_replicas_give_the_losses_of_one_device(one_device, tmp_path):
    command, expected = one_device
    run_one(command, tmp_path, f"--run_dir={tmp_path}/run", "--strategy=mirrored", "--virtual_cpus=2")
    for name in ("loss", "val_loss"):
        assert_close(rows(tmp_path / "run", name), rows(expected, name))


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [2, 3])
def test_several_workers_give_the_losses_of_one_device_and_the_chief_writes(one_device, num_workers, tmp_path):
    command, expected = one_device
    run_dir = tmp_path / "run"
    texts = run_workers(num_workers, [*command, f"--run_dir={run_dir}"], tmp_path)
    for name in ("loss", "val_loss"):
        assert_close(rows(run_dir, name), rows(expected, name))
    assert all(seen(text) == rows(run_dir, "loss") for text in texts)
    assert f"on {num_workers} replica(s)" in texts[0] and "finished 12 steps" in texts[0]
    assert [said(text) for text in texts[1:]] == [[]] * (num_workers - 1)
    names = [sorted(path.name for path in folder.iterdir()) for folder in (run_dir, expected)]
    assert names[0] == names[1]
    events = list((run_dir / "tensorboard").glob("events*"))
    assert len(events) == 1, "more than one worker wrote TensorBoard logs"


def wait_for(condition, worker, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert worker.process.poll() is None and time.monotonic() < deadline, worker.printed()[-3000:]
        time.sleep(0.05)


@pytest.fixture(scope="module")
def uninterrupted(halves_set, tmp_path_factory):
    """A command, and its losses on two workers that nothing disturbed."""
    command = (*PRETRAIN, f"--data={halves_set}", "--val_split=none", "--steps=300", "--checkpoint_every_steps=20")
    folder = tmp_path_factory.mktemp("whole")
    run_workers(2, [*command, f"--run_dir={folder}/run"], folder)
    return command, rows(folder / "run", "loss")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_ends_the_others_and_the_same_command_goes_on_exactly(uninterrupted, victim, tmp_path):
    command, losses = uninterrupted
    run_dir = tmp_path / "run"
    command = [*command, f"--run_dir={run_dir}"]
    with started(2, command, tmp_path) as workers:
        wait_for(lambda: len(rows(run_dir, "loss")) >= 50, workers[0])
        workers[victim].process.kill()
        survivor = workers[1 - victim]
        (text,) = finish([survivor], [1], seconds=120)
    (sentence,) = [line for line in said(text) if line.startswith("ERROR")]
    assert sentence.startswith(f"ERROR: Worker {victim} has stopped or cannot be reached")
    assert "Traceback" not in text
    assert len(rows(run_dir, "loss")) < 300
    texts = run_workers(2, command, tmp_path)
    assert "going on at step" in texts[0]
    assert rows(run_dir, "loss") == losses


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_a_request_to_one_worker_stops_all_at_one_step_after_the_checkpoint(uninterrupted, asked, tmp_path):
    command, losses = uninterrupted
    run_dir = tmp_path / "run"
    command = [*command, f"--run_dir={run_dir}", "--checkpoint_every_steps=1000"]
    with started(2, command, tmp_path) as workers:
        wait_for(lambda: len(rows(run_dir, "loss")) >= 20, workers[0])
        workers[asked].process.send_signal(signal.SIGTERM)
        texts = finish(workers, [130, 130])
    (last,) = {max(seen(text)) for text in texts}
    assert [path.name for path in (run_dir / "checkpoints").glob("step-*.npz")] == [f"step-{last:08d}.npz"]
    texts = run_workers(2, command, tmp_path)
    assert f"going on at step {last}" in texts[0]
    assert rows(run_dir, "loss") == losses


@pytest.mark.slow
def test_evaluation_in_workers_equals_that_in_one_process(one_device, halves_set, tmp_path):
    command, expected = one_device
    if command[2] != "keras_mae.finetune":
        pytest.skip("a pre-training has no classifier")
    command = ["-m", "keras_mae.evaluate", f"--run_dir={expected}", f"--data={halves_set}", "--batch_size=6"]
    for count in (1, 2, 3):
        texts = run_workers(count, [*command, f"--output={tmp_path}/{count}.json"], tmp_path)
        assert ["top-1" in text for text in texts] == [True] + [False] * (count - 1)
    one, *others = (json.loads((tmp_path / f"{count}.json").read_text()) for count in (1, 2, 3))
    for other in others:
        assert [other[name] for name in ("samples", "accuracy")] == [9, one["accuracy"]]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)


def errors_of_two(command, folder):
    texts = run_workers(2, command, folder, codes=[1, 1])
    assert not any("Traceback" in text for text in texts)
    return ["\n".join(line for line in said(text) if line.startswith("ERROR")) for text in texts]


@pytest.mark.slow
def test_workers_with_other_flags_are_told_the_difference(halves_set, tmp_path):
    command = [*PRETRAIN, f"--data={halves_set}", "--steps=3", f"--run_dir={tmp_path}/run", "--seed=WORKER"]
    sentences = errors_of_two(command, tmp_path)
    for sentence in sentences:
        assert "recipe.seed of the run is 0, received 1" in sentence
    assert sentences[0].startswith("ERROR: Worker 1 cannot go on: ")


@pytest.mark.slow
def test_workers_that_do_not_share_the_run_folder_are_told(halves_set, tmp_path):
    command = [*PRETRAIN, f"--data={halves_set}", "--steps=2"]
    run_one(command, tmp_path, f"--run_dir={tmp_path}/run-1")
    sentences = errors_of_two([*command, f"--run_dir={tmp_path}/run-WORKER"], tmp_path)
    for sentence in sentences:
        assert "see different newest checkpoints" in sentence
        assert "worker 0 step 0, worker 1 step 2" in sentence
