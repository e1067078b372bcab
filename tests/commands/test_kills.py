"""kill -9 at random moments, the same command again: every loss is that of a run that nobody killed."""

import json
import re

import pytest
from fixtures.commands import run_command

from tools import kill_test
from tools.kill_test import STARTING, STEP, WRITING, find_differences, plan_kills


@pytest.fixture
def runs(tmp_path):
    """Two run folders of equal content: three rows, and a checkpoint."""
    folders = tmp_path / "whole", tmp_path / "killed"
    for folder in folders:
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "step-00000002.npz").write_bytes(b"state")
        rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "images_per_second": 7}, {"step": 2, "val_loss": 3}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folders


def test_equal_runs_have_no_differences_but_of_time(runs):
    log = runs[1] / "metrics.jsonl"
    log.write_text(log.read_text().replace('"images_per_second": 7', '"images_per_second": 8'))
    assert find_differences(*runs) == []


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("0.25", "0.25000000000000006", r"row .*0\.25} became .*0\.25000000000000006}"),
        ('"val_loss": 3', '"val_loss": 4', "row .*'val_loss': 3} became .*4}"),
        ('{"step": 2, "val_loss": 3}\n', "", "3 rows became 2"),
    ],
)
def test_a_row_that_differs_is_named(runs, old, new, sentence):
    log = runs[1] / "metrics.jsonl"
    log.write_text(log.read_text().replace(old, new))
    (found,) = find_differences(*runs)
    assert re.fullmatch(sentence, found)


def test_a_last_checkpoint_that_differs_is_named(runs):
    (runs[1] / "checkpoints" / "step-00000002.npz").write_bytes(b"stat3")
    assert len(find_differences(*runs)) == 1


def test_kills_are_drawn_from_the_seed_in_the_order_of_the_run():
    moments = plan_kills(30, 100, seed=1)
    assert moments == plan_kills(30, 100, seed=1) != plan_kills(30, 100, seed=2)
    steps = [moment.step for moment in moments]
    assert steps == sorted(set(steps)) and 1 <= steps[0] and steps[-1] <= 80
    assert {moment.kind for moment in moments} == {STARTING, STEP, WRITING}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--kills=9", "--steps=10"), "--steps=10 are too few for --kills=9; give at least 12"),
        (("--data=/nowhere",), "/nowhere"),
        (("--output=.",), "is not empty; choose another --output"),
    ],
)
def test_what_cannot_be_tested_is_refused(flags, sentence, capsys):
    assert run_command(kill_test, *flags) == 1
    assert sentence in capsys.readouterr().err


def test_a_kill_into_a_checkpoint_changes_nothing(tmp_path, capfd):
    """The short form."""
    flags = ("--kills=1", "--steps=20", "--seed=5", "--pretrain_flags=--val_split=none --depth=1")
    assert run_command(kill_test, *flags, f"--output={tmp_path}") == 0
    said = capfd.readouterr().out
    assert f": {WRITING}, " in said
    assert "all 20 losses and the last checkpoint are equal" in said


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_change_nothing(tmp_path, capfd):
    assert run_command(kill_test, "--kills=20", "--seed=1", f"--output={tmp_path}") == 0
    said = capfd.readouterr().out
    assert "all 400 losses and the last checkpoint are equal" in said
    assert "kill 20 of 20" in said and said.count("a checkpoint is torn") >= 3
