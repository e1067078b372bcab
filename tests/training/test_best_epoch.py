"""The best evaluation's weights are kept, whatever is killed when."""

import json
import types

import keras
import numpy as np
import pytest

from keras_mae.training import best_epoch
from keras_mae.training.best_epoch import RESULT, BestEpoch
from keras_mae.training.checkpoint_file import write_checkpoint
from keras_mae.training.checkpoints import Checkpoints

VALUES = (0.1, 0.4, 0.3, 0.4, 0.2, 0.6, 0.6, 0.5)  # accuracy after steps 1 to 8


class Killed(BaseException):
    pass


def write_steps(model, folder):
    """An export that holds the weights as a number."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_text(str(float(model.weights[0].numpy())))


class Run:
    """A run of one weight, whose value is the step, evaluated after every step.

    Args:
        folder: of the checkpoints.
        checkpoint_every: steps between checkpoints.
    """

    def __init__(self, folder, checkpoint_every=3, keep=2):
        self.checkpoints = Checkpoints(folder, keep)
        self.every = checkpoint_every
        self.variable = keras.Variable(0.0, name="step")
        self.model = types.SimpleNamespace(weights=[self.variable])

    def start(self):
        state = self.checkpoints.restore([self.variable])
        self.step = 0 if state is None else state["step"]
        self.best = BestEpoch(
            self.step, 8, checkpoints=self.checkpoints, model=self.model, metric="accuracy", steps_per_epoch=2
        )
        return self.best

    def train(self, values=VALUES, killed_at=None, killed_before_checkpoint=False):
        best = self.start()
        evaluate = best.watched(lambda: {"accuracy": values[self.step - 1], "loss": 1.0})
        while self.step < len(values):
            self.step += 1
            self.variable.assign(float(self.step))
            best.on_train_batch_end(0)
            if self.step == killed_at and not killed_before_checkpoint:
                raise Killed
            assert evaluate()["loss"] == 1.0
            if self.step == killed_at:
                raise Killed
            if self.step % self.every == 0 or self.step == len(values):
                self.checkpoints.save(self.step, [self.variable], {})

    def exported(self, folder):
        self.start().export(write_steps, folder)
        return float((folder / "weights").read_text()), json.loads((folder / RESULT).read_text())


def test_the_first_of_equals_is_exported_with_its_epoch(tmp_path):
    run = Run(tmp_path / "checkpoints")
    run.train()
    assert run.exported(tmp_path / "best") == (6.0, {"step": 6, "epoch": 3.0, "val_accuracy": 0.6})
    assert [path.name for path in sorted(run.checkpoints.folder.glob("best-*"))] == ["best-00000006.npz"]


@pytest.mark.parametrize("killed_at", range(1, 9))
@pytest.mark.parametrize("killed_before_checkpoint", [False, True], ids=["unevaluated", "evaluated"])
@pytest.mark.parametrize("checkpoint_every", [1, 3, 5])
def test_a_killed_run_ends_with_the_same_best(tmp_path, killed_at, killed_before_checkpoint, checkpoint_every):
    run = Run(tmp_path / "checkpoints", checkpoint_every)
    with pytest.raises(Killed):
        run.train(killed_at=killed_at, killed_before_checkpoint=killed_before_checkpoint)
    run.train()
    assert run.exported(tmp_path / "best")[0] == 6.0


def test_a_kill_between_evaluation_and_writing_changes_nothing(tmp_path, monkeypatch):
    def write(path, arrays, state):
        if state["step"] == 6:
            path.with_suffix(".tmp").write_text("half")
            raise Killed
        write_checkpoint(path, arrays, state)

    run = Run(tmp_path / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(best_epoch, "write_checkpoint", write)
        with pytest.raises(Killed):
            run.train()
    assert run.start().result["step"] == 2
    assert not list(run.checkpoints.folder.glob("*.tmp"))
    run.train()
    assert run.exported(tmp_path / "best")[0] == 6.0


def test_what_is_trained_again_is_judged_again(tmp_path):
    """Steps 4 to 7 are lost with a kill, and turn out worse the second time: the best is of the run as it went."""
    run = Run(tmp_path / "checkpoints")
    with pytest.raises(Killed):
        run.train(killed_at=7)
    run.checkpoints.paths()[-1].unlink()  # that of step 6: the run goes back to step 3
    run.train((*VALUES[:3], 0.3, 0.2, 0.35, 0.1, 0.1))
    assert run.exported(tmp_path / "best") == (2.0, {"step": 2, "epoch": 1.0, "val_accuracy": 0.4})


def test_a_damaged_file_gives_way_to_the_one_before(tmp_path, capsys):
    run = Run(tmp_path / "checkpoints", checkpoint_every=5)
    with pytest.raises(Killed):
        run.train(killed_at=7)
    run.checkpoints.save(6, [run.variable], {})
    (run.checkpoints.folder / "best-00000006.npz").write_bytes(b"")
    assert run.start().result["step"] == 2
    assert "best-00000006.npz is damaged (it is empty); the best before it is taken" in capsys.readouterr().err


def test_a_full_disk_does_not_end_training(tmp_path, monkeypatch, capsys):
    def fail(path, arrays, state):
        raise OSError(28, "No space left on device")

    run = Run(tmp_path / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(best_epoch, "write_checkpoint", fail)
        run.train()
    assert run.start().result is None
    assert "best-00000006.npz could not be written: No space left on device" in capsys.readouterr().err


def test_a_run_without_evaluation_has_nothing_to_export(tmp_path):
    best = Run(tmp_path / "checkpoints").start()
    assert best.is_exported(tmp_path / "best")
    best.export(write_steps, tmp_path / "best")
    assert not (tmp_path / "best").exists()


def test_a_figure_that_is_no_number_is_never_the_best(tmp_path):
    run = Run(tmp_path / "checkpoints")
    run.train((float("nan"), 0.2, float("nan")))
    assert np.isclose(run.exported(tmp_path / "best")[1]["val_accuracy"], 0.2)


def test_it_is_exported_when_its_figures_are_there(tmp_path):
    run = Run(tmp_path / "checkpoints")
    run.train()
    best = run.start()
    write_steps(run.model, tmp_path / "best")  # and then it was killed
    assert not best.is_exported(tmp_path / "best")
    best.export(write_steps, tmp_path / "best")
    assert best.is_exported(tmp_path / "best")
