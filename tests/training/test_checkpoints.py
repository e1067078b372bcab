"""Checkpoints: whole or not there."""

import builtins
import errno
import io
import json
import os
import resource

import keras
import numpy as np
import pytest

from keras_mae.training.checkpoint_file import DamagedCheckpointError, read_checkpoint, write_checkpoint
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


def test_a_checkpoint_is_an_npz_and_the_same_content_gives_the_same_bytes(tmp_path):
    values = {"b": np.arange(6.0, dtype="float32").reshape(2, 3).T, "a": np.array(3, "int64"), "c": np.zeros((0, 2))}
    for name in ("one.npz", "two.npz"):
        write_checkpoint(tmp_path / name, values, {"step": 1})
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz") as read:
        for name, value in values.items():
            np.testing.assert_array_equal(read[name], value, strict=True)
        assert json.loads(str(read["__state__"])) == {"step": 1}


def test_only_the_newest_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10, 100_000_000):
        checkpoints.save(step, variables(step), {})
    assert [p.name for p in checkpoints.paths()] == ["step-00000010.npz", "step-100000000.npz"]


def test_every_damage_of_a_file_is_noticed(tmp_path):
    """Cut at any byte, and a bit flipped in any byte: never other values than those written."""
    path = tmp_path / "step-00000001.npz"
    values = {"model/kernel": np.arange(6, dtype="float32").reshape(2, 3)}
    write_checkpoint(path, values, {"step": 1})
    content = path.read_bytes()

    def is_damaged(changed):
        path.write_bytes(changed)
        try:
            state, arrays = read_checkpoint(path)
        except DamagedCheckpointError:
            return True
        assert state == {"step": 1} and arrays.keys() == values.keys()
        for name, value in values.items():
            np.testing.assert_array_equal(arrays[name], value, strict=True)
        return False

    assert not is_damaged(content)
    assert all(is_damaged(content[:length]) for length in range(len(content)))
    flipped = [content[:i] + bytes([byte ^ 1 << i % 8]) + content[i + 1 :] for i, byte in enumerate(content)]
    assert sum(map(is_damaged, flipped)) > len(content) / 2  # the rest are dates and the like


def other_npz(path):
    with open(path, "wb") as file:
        np.savez(file, a=np.ones(3))


def of_another_step(path):
    write_checkpoint(path, {"a": np.ones((2, 3))}, {"step": 1})


DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "text": (lambda path: path.write_text("no checkpoint"), "it is cut short, or no checkpoint"),
    "another npz": (other_npz, "no checkpoint of a training"),
    "another step": (of_another_step, "it is of step 1"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path, capsys, damage):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, variables(1.0), {})
    path = checkpoints.save(2, variables(2.0), {})
    change, reason = DAMAGES[damage]
    change(path)
    fresh = variables(0.0)
    assert checkpoints.restore(fresh)["step"] == 1
    assert (fresh[0].numpy() == 1.0).all()
    said = capsys.readouterr().err
    assert said.startswith(f"WARNING: {path} is damaged (") and reason in said
    assert said.endswith("; step-00000001.npz is taken.\n")


def test_all_damaged_is_an_error_that_changes_nothing(tmp_path):
    Checkpoints(tmp_path).save(1, variables(1.0), {}).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* \(step-00000001.npz: it is empty\)"):
        Checkpoints(tmp_path).restore(variables(0.0))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.npz"]


def test_a_start_cleans_up_and_puts_damaged_ones_aside(tmp_path):
    """Otherwise a damaged one would count as the newest, and rotation would take the only whole one."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(10, variables(1.0), {})
    (tmp_path / "step-00000020.npz").write_bytes(b"damaged")
    (tmp_path / "step-00000030.tmp").write_bytes(b"torn")
    checkpoints.clean(checkpoints.restore(variables(0.0))["step"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010.npz", "step-00000020.npz.damaged"]
    checkpoints.save(15, variables(1.5), {})
    assert [p.name for p in checkpoints.paths()] == ["step-00000015.npz"]


def test_rotation_never_takes_what_was_just_written(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(20, variables(2.0), {})
    checkpoints.save(10, variables(1.0), {})
    assert [p.name for p in checkpoints.paths()] == ["step-00000010.npz", "step-00000020.npz"]


class FillingFile(io.FileIO):
    """A file on a disk that is full from the n-th write on."""

    writes_left = 0

    def write(self, data):
        FillingFile.writes_left -= 1
        if FillingFile.writes_left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_disk_that_is_full_at_any_write_leaves_the_older_one_alone(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, variables(1.0), {})
    opened = builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, mode="r", *a, **k: FillingFile(file, "w"))
    writes = 0
    while True:
        FillingFile.writes_left = writes
        try:
            checkpoints.save(2, variables(2.0), {})
            break
        except OSError as error:
            assert error.errno == errno.ENOSPC
        writes += 1
        assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.npz"]
    monkeypatch.setattr(builtins, "open", opened)
    assert writes > 10
    assert checkpoints.restore(variables(0.0))["step"] == 2


def test_a_limit_of_file_sizes_leaves_the_older_one_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, variables(1.0), {})
    large = [keras.Variable(np.zeros(1_000_000, "float32"), name="large")]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoints.save(2, large, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.npz"]


def test_variables_that_share_a_path_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="share a path.*'a'"):
        Checkpoints(tmp_path).save(1, variables(1.0, ("a", "b", "a")), {})


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
