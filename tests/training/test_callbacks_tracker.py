"""Weights & Biases, played by a module that notes what it is told; the calls are those that wandb 0.31 takes."""

import importlib.machinery
import json
import sys
import types

import numpy as np
import pytest

from keras_mae.training.experiment_tracker import TrackerError, WandbTracker, check_wandb


class FakeRun:
    def __init__(self, number, given):
        self.id = given["id"] or f"run{number}"
        self.told = []

    def define_metric(self, name, *, step_metric):
        self.told.append(("axis", name, step_metric))

    def log(self, figures):
        self.told.append(figures)

    def finish(self, *, exit_code):
        self.told.append(("finish", exit_code))


@pytest.fixture
def wandb(monkeypatch):
    """The module; `wandb.starts` holds what each `init` was given, `wandb.runs` what it gave."""
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.starts, module.runs = [], []
    module.Error = type("Error", (Exception,), {})
    module.Image = lambda pixels: ("image", pixels.dtype.name, pixels.shape, int(pixels.max()))
    module.Settings = lambda *, console: {"console": console}

    def init(*, project, name, id, resume, dir, config, settings):
        module.starts.append({"project": project, "name": name, "id": id, "resume": resume, "dir": dir})
        module.runs.append(FakeRun(len(module.starts), module.starts[-1]))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_figures_and_pictures_are_sent_by_step(wandb, tmp_path):
    tracker = WandbTracker(tmp_path, "masks", {"recipe": {"depth": 2}})
    tracker.scalars(3, {"loss": 0.5})
    wide = np.full((2, 4, 4, 1), 65535, "uint16")
    tracker.images(3, {"pictures": wide})
    tracker.close(failed=True)
    assert wandb.starts == [
        {"project": "masks", "name": tmp_path.name, "id": None, "resume": "allow", "dir": str(tmp_path)}
    ]
    assert wandb.runs[0].told == [
        ("axis", "*", "step"),
        {"step": 3, "loss": 0.5},
        {"step": 3, "pictures": 2 * [("image", "uint8", (4, 4, 1), 255)]},
        ("finish", 1),
    ]


def test_a_run_that_goes_on_is_the_same_run_there(wandb, tmp_path):
    for project in ("masks", "masks", "other"):
        WandbTracker(tmp_path, project, {}).close(failed=False)
    assert [start["id"] for start in wandb.starts] == [None, "run1", None]
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"project": "other", "id": "run3"}


def test_who_is_not_logged_in_reads_a_sentence(wandb, tmp_path):
    def refuse(**given):
        raise wandb.Error("No API key configured.")

    wandb.init = refuse
    with pytest.raises(TrackerError, match="does not start: No API key configured. WANDB_MODE=offline does without"):
        WandbTracker(tmp_path, "masks", {})
    assert not (tmp_path / "wandb.json").exists()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_wandb(None)
    with pytest.raises(ValueError, match="needs the package wandb, which is missing: pip install"):
        check_wandb("masks")


def test_an_installed_package_is_found(wandb):
    check_wandb("masks")
