"""Which run a folder holds."""

import json

import pytest

from keras_mae.training.metrics_log import append_row, cut_back, read_rows
from keras_mae.training.run_dir import RunDirError, claim, description_above, locked, read_description


def description(total_steps=10, **recipe):
    return {
        "command": "pretrain",
        "recipe": {"mask_ratio": 0.75, "seed": 0, "epochs": 1.0, "log_every_steps": 10, **recipe},
        "data": {"fingerprint": "abc"},
        "total_steps": total_steps,
    }


@pytest.fixture
def run_dir(tmp_path):
    """A folder with a checkpoint: what makes a run worth keeping."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000001.npz").touch()
    return tmp_path


def test_a_run_without_a_checkpoint_makes_way(tmp_path):
    claim(tmp_path, description())
    claim(tmp_path, description(mask_ratio=0.5))
    assert read_description(tmp_path)["recipe"]["mask_ratio"] == 0.5


def test_a_damaged_recipe_is_named(tmp_path):
    (tmp_path / "recipe.json").write_text('{"comm')
    with pytest.raises(RunDirError, match="recipe.json is damaged"):
        claim(tmp_path, description())


def test_the_run_is_found_from_its_export(run_dir):
    claim(run_dir, description())
    for path in (run_dir, run_dir / "export", run_dir / "export" / "saved_model"):
        assert description_above(path) == description()
    assert description_above(run_dir.parent) is None


def test_length_may_grow_and_logging_may_change(run_dir):
    claim(run_dir, description())
    claim(run_dir, description(total_steps=20, epochs=2.0, log_every_steps=1))
    assert json.loads((run_dir / "recipe.json").read_text())["total_steps"] == 20


def test_length_may_not_shrink(run_dir):
    claim(run_dir, description())
    with pytest.raises(RunDirError, match="may grow, not shrink: the run has 10, received 5"):
        claim(run_dir, description(total_steps=5))


def test_another_run_is_refused_by_field(run_dir):
    claim(run_dir, description())
    with pytest.raises(RunDirError, match=r"recipe.mask_ratio of the run is 0.75, received 0.5"):
        claim(run_dir, description(mask_ratio=0.5))
    with pytest.raises(RunDirError, match="data.fingerprint"):
        claim(run_dir, {**description(), "data": {"fingerprint": "xyz"}})
    assert json.loads((run_dir / "recipe.json").read_text()) == description()


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
