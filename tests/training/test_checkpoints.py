"""Checkpoints: whole or not there."""

import os

import keras
import numpy as np
import pytest

from keras_mae.training.checkpoints import CheckpointError, Checkpoints


def variables(value, names=("a", "b")):
    return [keras.Variable(np.full((2, 3), value, "float32"), name=name) for name in names]


def test_restore_gives_back_values_and_state(tmp_path):
    Checkpoints(tmp_path).save(7, variables(1.5), {"data": {"epoch": 2}})
    fresh = variables(0.0)
    state = Checkpoints(tmp_path).restore(fresh)
    assert state == {"data": {"epoch": 2}, "step": 7}
    assert all((v.numpy() == 1.5).all() for v in fresh)


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path / "none").restore(variables(0.0)) is None


def test_only_the_newest_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10):
        checkpoints.save(step, variables(step), {})
    assert [p.name for p in checkpoints.paths()] == ["step-00000002.npz", "step-00000010.npz"]


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path, caplog, damage):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, variables(1.0), {})
    path = checkpoints.save(2, variables(2.0), {})
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[content.index(np.float32(2.0).tobytes())] ^= 255
    path.write_bytes(content)
    fresh = variables(0.0)
    assert checkpoints.restore(fresh)["step"] == 1
    assert (fresh[0].numpy() == 1.0).all()
    assert "step-00000002.npz is damaged" in caplog.text


def test_all_damaged_is_an_error(tmp_path):
    Checkpoints(tmp_path).save(1, variables(1.0), {}).write_bytes(b"")
    with pytest.raises(CheckpointError, match="step-00000001.npz"):
        Checkpoints(tmp_path).restore(variables(0.0))


def test_a_write_that_fails_leaves_the_older_one_alone(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, variables(1.0), {})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(2, variables(2.0), {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.npz"]


@pytest.mark.parametrize("names", [("a",), ("a", "c")])
def test_other_variables_are_refused(tmp_path, names):
    Checkpoints(tmp_path).save(1, variables(1.0), {})
    with pytest.raises(CheckpointError, match="other variables"):
        Checkpoints(tmp_path).restore(variables(0.0, names))


def test_another_shape_is_refused_before_anything_is_assigned(tmp_path):
    Checkpoints(tmp_path).save(1, variables(1.0), {})
    fresh = [variables(0.0)[0], keras.Variable(np.zeros((5,)), name="b")]
    with pytest.raises(CheckpointError, match=r"b has another shape.*\(5,\).*\(2, 3\)"):
        Checkpoints(tmp_path).restore(fresh)
    assert (fresh[0].numpy() == 0).all()
