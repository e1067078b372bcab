"""The table of results: every published row, ours beside it only where it is about the same, and both apart."""

import html
import re

import pytest
from fixtures.commands import run_command

from keras_mae.evaluation.results_file import ResultsError, write_results
from keras_mae.recipes.published import IMAGENET, PUBLISHED
from tools import report
from tools.ablation_tables import TABLES
from tools.report_results import HEAD, measured_figures, results_table, write_results_report

VIT_BASE = {
    "image_size": [224, 224],
    "patch_size": 16,
    "channels": 3,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "num_classes": 1000,
}
FIGURES = {"accuracy": 0.75, "top5_accuracy": 0.9, "loss": 1.0, "samples": 50000, "data": "shards", "split": "val"}


def write(path, run=None, **values):
    run = {"command": "finetune", "recipe": {"from_scratch": False}} if run is None else run
    write_results(path, {"structure": VIT_BASE, "run": run, **FIGURES, **values})
    return path


def cells(table, column, **wanted):
    rows = [dict(zip(HEAD, row, strict=True)) for row in table[1]]
    return [row[column] for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_every_published_row_is_there_with_its_command():
    table = results_table([])
    ablations = sum(len(ablation.rows) for ablation in TABLES.values())
    assert len(table[1]) == len(PUBLISHED) + 2 * ablations
    assert set(cells(table, "measured here")) == {"-"}
    for row in PUBLISHED:
        about = {"data": row.data, "method": row.method, "model": row.model, "by": row.source, "figure": row.figure}
        assert f"{row.value:g}" in cells(table, "published", protocol=row.protocol, **about)
        assert (row.command or "none yet") in cells(table, "command", protocol=row.protocol, **about)
    pca = {"method": "MAE, reconstruction target: PCA", "protocol": "linear probe"}
    assert cells(table, "published", **pca) == ["72.3"]
    assert cells(table, "note", **pca) == [
        "ENCODER: keras_mae.pretrain --recipe=vit_large --norm_pix_loss=false --target=pca --target_file=PCA"
    ]


def test_results_stand_beside_the_rows_about_the_same_and_nowhere_else(tmp_path):
    path = write(tmp_path / "results.json")
    measured = measured_figures(path)
    table = results_table(measured)
    # sqrt(.75 * .25 / 50000) = .00194
    text = f"75.00 ± 0.19 ({path})"
    found = [dict(zip(HEAD, row, strict=True)) for row in table[1] if text in row]
    assert {row["by"] for row in found} == {"paper, Table 3", "official checkpoint"}
    assert {(row["data"], row["protocol"], row["method"], row["model"], row["figure"]) for row in found} == {
        (IMAGENET, "fine-tuned", "MAE", "ViT-B/16", "top-1")
    }
    assert {row["published"] for row in found} == {"83.6", "83.664"}


@pytest.mark.parametrize(
    "change",
    [
        {"samples": 49999},
        {"structure": {**VIT_BASE, "depth": 11}},
        {"structure": {**VIT_BASE, "image_size": [448, 448]}},
        {"run": {"command": "linear_probe", "recipe": {}}, "structure": {**VIT_BASE, "num_classes": 10}},
    ],
)
def test_results_of_something_else_have_a_row_of_their_own(tmp_path, change):
    table = results_table(measured_figures(write(tmp_path / "results.json", **change)))
    assert cells(table, "published")[:3] == ["-", "-", "-"]
    assert cells(table, "figure")[:3] == ["top-1", "top-5", "loss"]
    assert set(cells(table, "measured here")[3:]) == {"-"}


def test_a_suite_shows_what_was_not_measured(tmp_path):
    sets = {"imagenet-a": {"accuracy": 0.5, "samples": 100}}
    path = tmp_path / "results.json"
    write(path, suite="robustness", sets=sets, mce=0.517, run={"command": "finetune", "recipe": {"from_scratch": True}})
    figures = {(figure.data, figure.figure): figure.text for figure in measured_figures(path)}
    assert figures == {
        ("ImageNet-A", "top-1"): "50.00 ± 5.00",
        ("ImageNet-R", "top-1"): "not measured",
        ("ImageNet-Sketch", "top-1"): "not measured",
        ("ImageNet-V2", "top-1"): "not measured",
        ("ImageNet-C", "mCE"): "51.7",
    }
    table = results_table(measured_figures(path))
    beside = cells(table, "measured here", data="ImageNet-A", method="scratch", model="ViT-B/16")
    assert beside == [f"50.00 ± 5.00 ({path})"]
    assert cells(table, "measured here", data="ImageNet-A", method="MAE", model="ViT-B/16") == ["-"]


def test_the_report_is_written_in_both_forms(tmp_path):
    path = write(tmp_path / "a|b.json")
    text = write_results_report([path], tmp_path / "report")
    assert (tmp_path / "report" / "results.md").read_text() == text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(HEAD) + 1}
    page = (tmp_path / "report" / "results.html").read_text()
    rows = re.findall("<tr>.*</tr>", page)
    assert len(rows) == len(lines) - 1
    assert html.escape(f"75.00 ± 0.19 ({path})") in page
    assert all('class="measured"' in row and 'class="published"' in row for row in rows)
    assert "http" not in page


def test_a_file_without_results_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ResultsError, match="holds no results"):
        measured_figures(tmp_path / "x.json")


def test_the_command_reports_on_results_and_refuses_a_mixture(tmp_path, capsys):
    results, output = tmp_path / "results.json", tmp_path / "report"
    write(results)
    assert run_command(report, f"--output={output}", str(results), takes_words=True) == 0
    assert (output / "results.html").is_file()
    assert "ImageNet-1K" in capsys.readouterr().out
    assert run_command(report, f"--output={output}", str(results), str(tmp_path), takes_words=True) == 1
    assert "a report is about one kind" in capsys.readouterr().err
