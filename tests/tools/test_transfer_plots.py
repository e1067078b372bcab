"""The transfer plots draw the numbers that they are given, and say which are others'."""

import html
import json
import re

import matplotlib
import pytest
from fixtures.commands import run_command
from matplotlib.figure import Figure
from PIL import Image

from keras_mae.evaluation.results_file import read_results, write_results
from tools import report
from tools.report_transfer import measured_runs, pretraining, transfer_notes
from tools.shard_figures import STYLE
from tools.transfer_panels import Measured, cell_text, make_panels, published_series, spread, table_rows
from tools.transfer_plan import PROBED, SCRATCH, TUNED
from tools.transfer_plots import draw_panel, draw_panels, foot_text

STRUCTURE = {"image_size": [28, 28], "patch_size": 4, "channels": 1, "embed_dim": 96, "depth": 4, "num_heads": 4}
STRUCTURE |= {"num_classes": 10}


def tuned(labels, accuracy, ratio=0.75, blocks=None, seed=0):
    return Measured(TUNED, labels, ratio, blocks, seed, accuracy)


def panels_by_name(measured):
    return {panel.name: panel for panel in make_panels(measured)}


def draw(panel):
    with matplotlib.rc_context(STYLE):
        axes = Figure().add_subplot()
        draw_panel(axes, panel)
    return axes


def dots(axes):
    """The points of single seeds, as (place, accuracy)."""
    lines = [line for line in axes.lines if line.get_linestyle() == "None" and line.get_marker() == "o"]
    return sorted((float(x), float(y)) for line in lines for x, y in line.get_xydata())


def line(axes, label):
    return next(line for line in axes.lines if line.get_label() == label).get_xydata().tolist()


def test_labels_are_drawn_at_their_number_with_all_seeds_and_their_mean():
    measured = [tuned(100, 80), tuned(100, 84, seed=1), tuned(1000, 90), tuned(1000, 95, seed=1)]
    measured += [Measured(SCRATCH, 100, None, None, 0, 50), Measured(SCRATCH, 1000, None, None, 0, 70)]
    axes = draw(panels_by_name(measured)["labels"])
    assert dots(axes) == [(100, 50), (100, 80), (100, 84), (1000, 70), (1000, 90), (1000, 95)]
    assert line(axes, TUNED) == [[100, 82], [1000, 92.5]]
    assert line(axes, SCRATCH) == [[100, 50], [1000, 70]]
    assert axes.get_xscale() == "log" and [text.get_text() for text in axes.get_xticklabels()] == ["100", "1,000"]
    low, high = axes.get_ylim()
    assert low < 50 and high > 95


def test_the_share_of_labels_is_said_where_it_is_known():
    panel = make_panels([tuned(100, 80), tuned(4000, 90)], whole=4000)[0]
    assert [text.get_text() for text in draw(panel).get_xticklabels()] == ["100\n2.5%", "4,000\n100%"]
    assert [place for place, _ in table_rows(panel)] == ["100 = 2.5%", "4,000 = 100%"]


def test_blocks_stand_side_by_side_and_all_of_them_last():
    measured = [tuned(400, 90), tuned(400, 60, blocks=0.0), tuned(400, 80, blocks=1.0), tuned(400, 70, blocks=0.5)]
    axes = draw(panels_by_name(measured)["blocks"])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "0.5", "1", "all"]
    assert line(axes, f"{TUNED}, 400 labels") == [[0, 60], [1, 70], [2, 80], [3, 90]]
    # facts of the paper's Section 4.3, and of its Table 1 for all blocks
    assert line(axes, published_series("blocks")[0].label) == [[0, 73.5], [1, 79.1], [2, 81.0], [3, 84.9]]


def test_ratios_have_a_line_for_each_protocol_and_the_papers_points():
    measured = [tuned(400, 90 + ratio, ratio=ratio) for ratio in (0.5, 0.75, 0.9)]
    measured += [Measured(PROBED, 4000, ratio, None, 0, 80 + ratio) for ratio in (0.9, 0.5)]
    measured += [tuned(400, 10, ratio=None)]  # unknown: nowhere
    axes = draw(panels_by_name(measured)["ratios"])
    assert line(axes, f"{TUNED}, 400 labels") == [[0.5, 90.5], [0.75, 90.75], [0.9, 90.9]]
    assert line(axes, f"{PROBED}, 4,000 labels") == [[0.5, 80.5], [0.9, 80.9]]
    published = [line(axes, series.label) for series in published_series("ratios")]
    assert published == [[[0.75, 84.9]], [[0.75, 73.5]]]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["50", "75", "90"]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [name.startswith("published: ViT-L/16, ImageNet-1K") for name in names] == [False, False, True, True]


def test_a_panel_needs_two_places_that_differ_in_nothing_else():
    assert make_panels([tuned(100, 80), tuned(100, 81, seed=1)]) == []
    assert make_panels([tuned(100, 80), tuned(200, 90, ratio=0.5)]) == []
    assert make_panels([tuned(100, 80), tuned(200, 90, blocks=1.0)]) == []
    assert make_panels([tuned(100, 80)._replace(about="a"), tuned(200, 90)._replace(about="b")]) == []
    assert list(panels_by_name([tuned(100, 80), tuned(200, 90)])) == ["labels"]


def test_lines_of_one_protocol_are_told_apart_by_what_differs():
    measured = [tuned(n, 80, blocks=blocks) for n in (100, 200) for blocks in (None, 1.0)]
    labels = panels_by_name(measured)["labels"]
    assert [series.label for series in labels.series] == [f"{TUNED}, blocks: all", f"{TUNED}, blocks: 1"]
    axes = draw(labels)
    assert len({ax.get_color() for ax in axes.lines if ax.get_label().startswith(TUNED)}) == 2


def test_the_spread_is_that_of_two_and_the_standard_deviation_of_more():
    assert spread([70.0]) == (70, 70)
    assert spread([74.0, 70.0]) == (70, 74)
    # mean 74, squared distances 16, 0 and 16: sqrt(32 / 2) = 4
    assert spread([70.0, 74.0, 78.0]) == pytest.approx((70, 78))
    assert cell_text([70.0]) == "70.0%" and cell_text(None) == "-"
    assert cell_text([74.0, 70.0]) == "72.0% (70.0 to 74.0)"
    assert cell_text([70.0, 74.0, 78.0]) == "74.0% ± 4.0"


def test_the_bars_are_the_spread():
    measured = [tuned(100, 70), tuned(100, 74, seed=1), tuned(200, 80), tuned(200, 90, seed=1), tuned(300, 99)]
    axes = draw(make_panels(measured)[0])  # one seed has no bar
    bars = [segment.tolist() for collection in axes.collections for segment in collection.get_segments()]
    assert bars == [[[100, 70], [100, 74]], [[200, 80], [200, 90]]]


def test_no_bar_ends_outside_the_panel():
    measured = [tuned(100, accuracy, seed=seed) for seed, accuracy in enumerate((70, 80, 80))]
    axes = draw(make_panels([*measured, tuned(200, 75)])[0])
    # mean 76.7, standard deviation 5.8: more than the largest
    assert axes.get_ylim()[1] > 82.4


def test_the_picture_has_a_column_for_each_panel():
    measured = [tuned(400, 90), tuned(400, 60, blocks=0.0), tuned(100, 80), tuned(400, 88, ratio=0.5)]
    panels = make_panels(measured)
    assert [panel.name for panel in panels] == ["labels", "blocks", "ratios"]
    # sqrt(90 x 10 / 1000) = .949
    assert foot_text(measured, 1000).endswith("90% on 1,000 images has a standard error of 0.95 points.")
    sizes = {}
    for count in (1, 3):
        png = draw_panels(panels[:count], foot_text(measured, 1000))
        assert png.startswith(b"\x89PNG")
        sizes[count] = int.from_bytes(png[16:20], "big")
    assert sizes[3] == 3 * sizes[1]


def write_run(folder, *, labels, accuracy, ratio=None, steps=10, command="finetune", **recipe):
    """A file of results where evaluate puts it, and the card of the run's model."""
    path = folder / "evaluation" / "val" / "results.json"
    recipe = {
        "seed": 0,
        **({"from_scratch": False, "trainable_blocks": None} if command == "finetune" else {}),
        **recipe,
    }
    run = {"command": command, "recipe": recipe, "data": {"samples": labels, "encoder": folder.name}}
    figures = {"accuracy": accuracy, "top5_accuracy": 1.0, "loss": 1.0, "samples": 1000, "data": "d", "split": "val"}
    write_results(path, {"model": str(folder), "structure": STRUCTURE, "run": run, **figures})
    if ratio is not None:
        (folder / "export").mkdir()
        card = {
            "source_license": "x",
            "began_with": {"source_license": "x", "training": {"mask_ratio": ratio, "steps": steps, "batch_size": 64}},
        }
        (folder / "export" / "card.json").write_text(json.dumps(card))
    return str(path)


def test_results_of_any_runs_say_where_they_are_drawn(tmp_path):
    paths = [
        write_run(tmp_path / "a", labels=100, accuracy=0.5, ratio=0.75, seed=3, trainable_blocks=1.0),
        write_run(tmp_path / "b", labels=200, accuracy=0.25, from_scratch=True),
        write_run(tmp_path / "c", labels=300, accuracy=0.75, command="linear_probe"),
    ]
    write_results(tmp_path / "d.json", {"run": None})
    assert [one[:6] for one in measured_runs([*paths, tmp_path / "d.json"])] == [
        (TUNED, 100, 0.75, 1.0, 3, 50),
        (SCRATCH, 200, None, None, 0, 25),
        (PROBED, 300, None, None, 0, 75),
    ]
    assert transfer_notes(measured_runs(paths))[0].startswith("Of 1 of 3 results, the masking ratio")
    assert transfer_notes(measured_runs(paths[:2])) == []


def test_the_ratio_is_found_beside_results_that_have_moved(tmp_path):
    path = write_run(tmp_path / "a", labels=100, accuracy=0.5, ratio=0.6)
    assert pretraining(path, {"model": "runs/gone"})["mask_ratio"] == 0.6
    # a fine-tuned model that was fine-tuned again, of a pre-training that went on from published weights
    published = {"source_license": "x"}
    chain = {"training": {"mask_ratio": 0.6}, "began_with": published}
    card = {"source_license": "x", "began_with": {"training": {"steps": 5}, "began_with": chain}}
    (tmp_path / "a" / "export" / "card.json").write_text(json.dumps(card))
    assert pretraining(path, {"model": "runs/gone"}) == {"mask_ratio": 0.6}
    (tmp_path / "a" / "export" / "card.json").write_text("{")
    assert pretraining(path, {"model": "runs/gone"}) == {}


def test_runs_of_other_encoders_do_not_mix(tmp_path):
    def lines(*encoders):
        paths = []
        for number, encoder in enumerate(encoders):
            for labels in (100, 200):
                folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
                paths.append(write_run(folder, labels=labels, accuracy=0.5, seed=number, **encoder))
        return [len(panel.series) for panel in make_panels(measured_runs(paths)) if panel.name == "labels"]

    assert lines({"ratio": 0.75}, {"ratio": 0.75}) == [1]  # two seeds
    assert lines({"ratio": 0.75}, {"ratio": 0.5}) == [2]
    assert lines({"ratio": 0.75}, {"ratio": 0.75, "steps": 20}) == [2]
    assert lines({}, {}) == []  # who knows


def test_the_best_epoch_and_the_last_do_not_mix(tmp_path):
    paths = [write_run(tmp_path / str(n), labels=n, accuracy=0.5, ratio=0.75) for n in (100, 200)]
    for path in list(paths):
        results = read_results(path)
        results |= {"model": f"{results['model']}/export/best", "accuracy": 0.9}
        paths.append(path.replace("/val/", "/val-best/"))
        write_results(paths[-1], results)
    (labels,) = make_panels(measured_runs(paths))
    assert [list(series.points.values()) for series in labels.series] == [[[50], [50]], [[90], [90]]]
    assert ", best epoch," in labels.series[1].label


def test_the_report_has_the_plots_in_its_page(tmp_path, capsys):
    paths = [write_run(tmp_path / str(n), labels=n, accuracy=n / 1000, ratio=0.75) for n in (100, 500)]
    paths += [write_run(tmp_path / "r", labels=100, accuracy=0.3, ratio=0.5)]
    output = tmp_path / "report"
    assert run_command(report, f"--output={output}", *paths, takes_words=True) == 0
    assert sorted(path.name for path in output.iterdir()) == ["labels.png", "ratios.png", "results.html", "results.md"]
    for name in ("labels", "ratios"):
        with Image.open(output / f"{name}.png") as picture:
            picture.load()
            assert picture.width > 300
    page = (output / "results.html").read_text()
    assert len(re.findall('<img alt="[^"]+" src="data:image/png;base64,', page)) == 2 and "http" not in page
    assert "![Masking ratio](ratios.png)" in capsys.readouterr().out


def test_results_that_differ_in_nothing_have_no_plot(tmp_path):
    paths = [write_run(tmp_path / name, labels=100, accuracy=0.5) for name in "ab"]
    assert run_command(report, f"--output={tmp_path / 'report'}", *paths, takes_words=True) == 0
    page = (tmp_path / "report" / "results.html").read_text()
    assert "<img" not in page and html.escape(transfer_notes(measured_runs(paths))[0]) in page
