"""tools.report: what it says of runs, without any training."""

import json
import os
import re

import numpy as np
import pytest
from fixtures.commands import run_command

from tools import report
from tools.report_curves import panel_figures, running_mean
from tools.report_runs import Run, best_of, differing_fields, read_runs


def write_run(folder, rows, *, steps=40, exported=True, **recipe):
    """A run folder of 20 samples in batches of 5."""
    (folder / ("export" if exported else "checkpoints")).mkdir(parents=True)
    description = {
        "command": "pretrain",
        "recipe": {"batch_size": 5, "mask_ratio": 0.75, **recipe},
        "data": {"samples": 20, "split": "train"},
        "total_steps": steps,
    }
    (folder / "recipe.json").write_text(json.dumps(description))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def training_rows(last, every=10, seconds=100.0):
    return [
        {
            "step": step,
            "loss": 1 / step,
            "learning_rate": 1e-3 * step,
            "images_per_second": 50.0 + step,
            "data_wait": 0.1,
            "seconds": seconds * step,
        }
        for step in range(every, last + 1, every)
    ]


@pytest.fixture
def runs(tmp_path):
    """Two runs of the same folder name: one finished, one killed in the middle of a row."""
    rows = [
        *training_rows(40),
        {"step": 20, "val_loss": 0.3, "val_knn": 0.5},
        {"step": 40, "val_loss": 0.4, "val_knn": 0.25},
    ]
    whole = write_run(tmp_path / "a" / "base", rows)
    killed = write_run(tmp_path / "b" / "base", training_rows(20), exported=False, mask_ratio=0.9)
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "lo')
    return whole, killed


def test_the_report_is_a_table_a_picture_and_one_page(runs, tmp_path, capsys):
    output = tmp_path / "out" / "report"
    assert run_command(report, *map(str, runs), f"--output={output}", takes_words=True) == 0
    assert sorted(os.listdir(output)) == ["curves.png", "report.html", "table.md"]
    table = (output / "table.md").read_text()
    assert table in capsys.readouterr().out
    head, _, whole, killed = (line.strip("| ").split(" | ") for line in table.splitlines())
    cells = [dict(zip(head, line, strict=True)) for line in (whole, killed)]
    assert cells[0] == {
        "run": "a/base",
        "state": "finished",
        "steps": "40 of 40",
        "epochs": "10.0",
        "time": "1:06 h",
        "images/s": "75.0",
        "data wait": "10%",
        "loss, last": "0.0250",
        "loss, best (step)": "0.0250 (40)",
        "val_loss, last": "0.4000",
        "val_loss, best (step)": "0.3000 (20)",
        "val_knn, last": "0.2500",
        "val_knn, best (step)": "0.5000 (20)",
    }
    assert [cells[1][name] for name in ("run", "state", "steps", "epochs", "val_loss, last")] == [
        "b/base",
        "unfinished",
        "20 of 40",
        "5.0",
        "-",
    ]
    page = (output / "report.html").read_text()
    assert "<td>mask_ratio</td><td>0.75</td><td>0.9</td>" in page and "<td>batch_size</td>" not in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []  # nothing outside of the page
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_before_its_first_row_is_reported(tmp_path):
    run = write_run(tmp_path / "run", [], exported=False)
    for against in ("step", "epoch"):
        assert run_command(report, str(run), f"--output={tmp_path / 'out'}", f"--x={against}", takes_words=True) == 0
    assert "| run | unfinished | 0 of 40 | 0.0 | - | - | - | - | - |" in (tmp_path / "out/table.md").read_text()


def test_a_run_at_its_last_step_without_models_is_unfinished(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "run", training_rows(40), exported=False)])
    assert (run.steps, run.is_finished) == (40, False)


def test_names_are_as_short_as_they_can_be(runs, tmp_path):
    other = write_run(tmp_path / "c" / "large", [])
    assert [run.name for run in read_runs([*runs, other, runs[0]])] == ["a/base", "b/base", "large"]


def test_the_best_is_the_highest_accuracy_and_the_lowest_loss(tmp_path):
    rows = [{"step": 1, "val_loss": 2.0, "val_accuracy": 0.1}, {"step": 2, "val_loss": 3.0, "val_accuracy": 0.2}]
    run = Run(tmp_path, "run", {}, rows)
    assert (best_of(run, "val_loss"), best_of(run, "val_accuracy")) == ((2.0, 1), (0.2, 2))


def test_only_what_differs_is_told(runs):
    assert differing_fields(read_runs(runs)) == {"mask_ratio": [0.75, 0.9]}


def test_panels_are_those_that_runs_have_rows_of(runs, tmp_path):
    extra = write_run(tmp_path / "c", [{"step": 1, "val_probe": 0.5, "corrupt": 0, "epoch": 1}])
    assert panel_figures(read_runs([*runs, extra])) == [
        "loss",
        "val_loss",
        "val_knn",
        "learning_rate",
        "images_per_second",
        "data_wait",
        "val_probe",
    ]


@pytest.mark.parametrize("width", [1, 2, 5, 99])
def test_the_running_mean_is_of_the_rows_around(width):
    values = np.random.default_rng(0).normal(size=30)
    expected = [values[max(0, i - (width - 1) // 2) : i + width // 2 + 1].mean() for i in range(30)]
    np.testing.assert_allclose(running_mean(values, width), expected, atol=1e-12)


NEITHER = "is neither a run folder of keras_mae nor a results.json"


def refused_paths(tmp_path):
    folder = tmp_path / "no_run"
    folder.mkdir()
    run = write_run(tmp_path / "run", [])
    damaged = write_run(tmp_path / "damaged", [])
    (damaged / "recipe.json").write_text("{")
    (tmp_path / "file").write_text("")
    return {
        "nothing": ([], "name run folders, or results.json files"),
        "no run": ([folder], f"no_run {NEITHER}: it has no recipe.json"),
        "no folder": ([tmp_path / "nowhere"], f"nowhere {NEITHER}: there is no such folder"),
        "damaged": ([run, damaged], "recipe.json is damaged"),
        "output": ([run, f"--output={tmp_path / 'file'}"], "is a file; expected a folder"),
    }


@pytest.mark.parametrize("name", ["nothing", "no run", "no folder", "damaged", "output"])
def test_what_is_no_run_is_refused(name, tmp_path, capsys):
    arguments, sentence = refused_paths(tmp_path)[name]
    assert run_command(report, f"--output={tmp_path / 'out'}", *map(str, arguments), takes_words=True) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
