"""Which run a folder holds."""

import json

import pytest

from keras_mae.training.metrics_log import append_row, cut_back, read_rows
from keras_mae.training.run_dir import RunDirError, claim, locked


def description(total_steps=10, **recipe):
    return {
        "command": "pretrain",
        "recipe": {"mask_ratio": 0.75, "seed": 0, "epochs": 1.0, "log_every_steps": 10, **recipe},
        "data": {"fingerprint": "abc"},
        "total_steps": total_steps,
    }


def test_the_same_run_goes_on(tmp_path):
    assert claim(tmp_path, description()) is False
    assert claim(tmp_path, description()) is True


def test_length_may_grow_and_logging_may_change(tmp_path):
    claim(tmp_path, description())
    claim(tmp_path, description(total_steps=20, epochs=2.0, log_every_steps=1))
    assert json.loads((tmp_path / "recipe.json").read_text())["total_steps"] == 20


def test_length_may_not_shrink(tmp_path):
    claim(tmp_path, description())
    with pytest.raises(RunDirError, match="may grow, not shrink: the run has 10, received 5"):
        claim(tmp_path, description(total_steps=5))


def test_another_run_is_refused_by_field(tmp_path):
    claim(tmp_path, description())
    with pytest.raises(RunDirError, match=r"recipe.mask_ratio of the run is 0.75, received 0.5"):
        claim(tmp_path, description(mask_ratio=0.5))
    with pytest.raises(RunDirError, match="data.fingerprint"):
        claim(tmp_path, {**description(), "data": {"fingerprint": "xyz"}})
    assert json.loads((tmp_path / "recipe.json").read_text()) == description()


def test_a_folder_in_use_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(RunDirError, match="in use"), locked(tmp_path):
        pass


def test_the_log_is_cut_back_torn_line_included(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_row(path, {"step": step, "loss": step / 3})
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]
    cut_back(path, 2)
    assert read_rows(path) == [{"step": 1, "loss": 1 / 3}, {"step": 2, "loss": 2 / 3}]
