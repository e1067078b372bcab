"""The ablation runner asks for the right trainings, goes on where it stopped, and says what became of every row.

Trainings are faked, but for one slow test; what a faked fine-tuning or probe reaches depends on its row.
"""

import dataclasses
import functools
import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from fixtures.commands import TINY, TINY_DECODER, run_command
from fixtures.shard_sets import encode, write_shard_set
from PIL import Image

import tools
from keras_mae.recipes import PRETRAIN_RECIPES
from pipeline.sources import FolderSource
from tools import ablate, ablation_report
from tools.ablation_report import draw_table, notes, standard_error, table_text
from tools.ablation_tables import TABLES, Study, pca_components, row_commands, row_flags
from tools.shard_plan import ShardOptions
from tools.sharding import make_shards
from tools.study_flags import RUN_FLAGS
from tools.study_steps import StepError, pass_on, run_step

run = functools.partial(run_command, ablate)


def write_images(folder, count, side=8):
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("left", "right")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(random.integers(0, 255, (side, side), dtype="uint8")))
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """20 grey images of two classes: splits train (15), held_out (5) and labelled (4, of other images)."""
    folder = tmp_path_factory.mktemp("ablate")
    options = ShardOptions("train", val_fraction=0.25, val_split="held_out")
    make_shards(FolderSource(str(write_images(folder / "images", 20))), folder / "shards", options, workers=1, log=str)
    few = FolderSource(str(write_images(folder / "few", 4)))
    make_shards(few, folder / "shards", ShardOptions("labelled"), workers=1, log=str)
    return str(folder / "shards")


class Trainings:
    """Stands for the commands: remembers the words, and fails or stops where a run folder's path has a word."""

    def __init__(self):
        self.words, self.failing, self.stopping = [], None, None

    def __call__(self, words):
        values = dict(word.removeprefix("--").partition("=")[::2] for word in words[2:])
        where = values.get("run_dir") or values["output"]
        self.words.append(list(words))
        if self.stopping and self.stopping in where:
            raise KeyboardInterrupt
        if self.failing and self.failing in where:
            raise StepError(f"{words[1]}: no room")
        if words[1] in ("keras_mae.finetune", "keras_mae.linear_probe"):
            Path(where).mkdir(parents=True)
            accuracy = 0.5 + 0.1 * len(self.rows) - (0.15 if words[1] == "keras_mae.linear_probe" else 0)
            rows = [{"step": 1, "val_accuracy": 0.1}, {"step": 2, "loss": 1.0}, {"step": 2, "val_accuracy": accuracy}]
            Path(where, "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    @property
    def rows(self):
        """Names of the rows that were fine-tuned, in their order."""
        return [
            Path(words[-1].partition("=")[2]).parent.name for words in self.words if words[1] == "keras_mae.finetune"
        ]


@pytest.fixture
def trainings(monkeypatch):
    trainings = Trainings()
    monkeypatch.setattr(ablate, "run_step", trainings)
    monkeypatch.setattr(ablation_report, "draw_table", lambda results, file: file.write(b"drawn"))
    return trainings


def read_results(output, table="1a"):
    return json.loads((output / table / "results.json").read_text())


def states(output, table="1a"):
    return {row["name"]: row["state"] for row in read_results(output, table)["rows"]}


def test_the_rows_are_those_of_the_facts():
    published = {
        table: [(row.finetuned, row.linear) for row in TABLES[table].rows] for table in ("1a", "1b", "1c", "1d", "1e")
    }
    assert published == {
        "1a": [(84.8, 65.5), (84.9, 70.0), (84.9, 73.5)],
        "1b": [(84.9, 69.1), (84.8, 71.3), (84.9, 73.5), (84.4, 73.1), (84.3, 73.1)],
        "1c": [(84.2, 59.6), (84.9, 73.5)],
        "1d": [(84.9, 73.5), (85.4, 73.9), (84.6, 72.3), (85.3, 71.6)],
        "1e": [(84.0, 65.7), (84.7, 73.1), (84.9, 73.5), (84.3, 71.9)],
    }
    masks = {row.text: (row.finetuned, row.linear) for row in TABLES["1f"].rows}
    assert masks == {
        "random 75%": (84.9, 73.5),
        "block 50%": (83.9, 72.3),
        "block 75%": (82.8, 63.9),
        "grid 75%": (84.0, 66.0),
    }


@pytest.mark.parametrize("table", sorted(TABLES))
def test_names_of_rows_are_folders_of_their_own(table):
    names = [row.name for row in TABLES[table].rows]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"\w+", name) for name in names)


def test_widths_follow_the_recipe():
    words = [row_flags(row, PRETRAIN_RECIPES["digits"]) for row in TABLES["1b"].rows]
    assert words == [[f"--decoder_embed_dim={width}"] for width in (16, 32, 64, 96, 128)]
    words = [row_flags(row, PRETRAIN_RECIPES["vit_base"]) for row in TABLES["1b"].rows]
    assert words == [[f"--decoder_embed_dim={row.text}"] for row in TABLES["1b"].rows]  # the paper's own


def test_the_pca_keeps_the_papers_share():
    assert pca_components(PRETRAIN_RECIPES["vit_base"]) == 96
    assert pca_components(PRETRAIN_RECIPES["digits"]) == 2  # of 4x4x1
    assert pca_components(dataclasses.replace(PRETRAIN_RECIPES["digits"], patch_size=1)) == 1


def test_each_row_pre_trains_fine_tunes_and_probes(shards, tmp_path, trainings):
    extra = ("--shared_flags=--precision=float32", "--pretrain_flags=--epochs=2 --noflip", "--finetune_flags=--steps=7")
    extra += ("--probe_flags=--steps=9 --cache_features",)
    assert run("--table=1a", f"--data={shards}", f"--output={tmp_path}", "--seed=3", *extra) == 0
    first = tmp_path / "1a" / "depth_1"
    shared = ["--recipe=digits", f"--data={shards}", "--seed=3", "--val_split=held_out"]
    encoder = f"--encoder={first}/pretrain/export/saved_model"
    assert trainings.words[:3] == [
        ["-m", "keras_mae.pretrain", "--precision=float32", "--epochs=2", "--noflip", *shared, "--split=train"]
        + ["--decoder_depth=1", f"--run_dir={first}/pretrain"],
        ["-m", "keras_mae.finetune", "--precision=float32", "--steps=7", *shared, "--split=labelled"]
        + [encoder, f"--run_dir={first}/finetune"],
        ["-m", "keras_mae.linear_probe", "--precision=float32", "--steps=9", "--cache_features", *shared]
        + ["--split=train", encoder, f"--run_dir={first}/probe"],
    ]
    assert trainings.rows == ["depth_1", "depth_2", "depth_8"]
    assert [row["finetuned_percent"] for row in read_results(tmp_path)["rows"]] == pytest.approx([60, 70, 80])
    assert [row["linear_percent"] for row in read_results(tmp_path)["rows"]] == pytest.approx([45, 55, 65])


def test_splits_can_be_chosen(shards, tmp_path, trainings):
    chosen = ("--split=labelled", "--labels=train", "--val_split=held_out")
    assert run("--table=1c", f"--data={shards}", f"--output={tmp_path}", *chosen) == 0
    assert [word for words in trainings.words for word in words if word.startswith("--split=")] == 2 * [
        "--split=labelled",
        "--split=train",
        "--split=labelled",
    ]
    assert (read_results(tmp_path, "1c")["num_images"], read_results(tmp_path, "1c")["num_labels"]) == (4, 15)


def test_a_pca_is_fitted_before_its_row(shards, tmp_path, trainings):
    assert run("--table=1d", f"--data={shards}", f"--output={tmp_path}") == 0
    file = tmp_path / "1d" / "pca" / "pca.npz"
    place = next(number for number, words in enumerate(trainings.words) if words[1] == "tools.fit_pca")
    assert trainings.words[place][2:] == [
        *(f"--data={shards}", "--split=train", "--num_components=2", "--image_size=28,28", "--patch_size=4"),
        *("--channels=1", "--pixel_mean=0.5", "--pixel_std=0.5", "--resize_size=28", f"--output={file}"),
    ]
    assert trainings.words[place + 1][1] == "keras_mae.pretrain"
    assert {"--target=pca", f"--target_file={file}"} <= set(trainings.words[place + 1])


def test_tokens_need_a_tokenizer(shards, tmp_path, trainings):
    assert run("--table=1d", f"--data={shards}", f"--output={tmp_path}") == 0
    assert states(tmp_path, "1d")["tokens"] == "left out"
    assert "dVAE tokens: left out, it needs a --tokenizer=PATH" in (tmp_path / "1d" / "table.md").read_text()
    (tmp_path / "t.keras").write_text("")
    trainings.words.clear()
    tokenizer = f"--tokenizer={tmp_path / 't.keras'}"
    assert run("--table=1d", f"--data={shards}", f"--output={tmp_path}", tokenizer) == 0
    assert trainings.rows == ["tokens"]
    assert {"--target=tokens", f"--target_file={tmp_path / 't.keras'}"} <= set(trainings.words[0])
    assert run("--table=1d", f"--data={shards}", f"--output={tmp_path}") == 0
    assert states(tmp_path, "1d")["tokens"] == "finished"  # what was measured stays


def test_the_table_of_masks_has_all_kinds(shards, tmp_path, trainings):
    assert run("--table=1f", f"--data={shards}", f"--output={tmp_path}") == 0
    assert trainings.rows == ["random_75", "block_50", "block_75", "grid_75"]
    assert {"--mask_kind=grid", "--mask_ratio=.75"} <= set(trainings.words[-3])


def test_a_stopped_table_goes_on_at_its_row(shards, tmp_path, trainings, capsys):
    command = ("--table=1a", f"--data={shards}", f"--output={tmp_path}")
    trainings.stopping = "depth_2/finetune"
    assert run(*command) == 130
    assert states(tmp_path) == {"depth_1": "finished", "depth_2": "to do", "depth_8": "to do"}
    assert "| 2 blocks | to do | to do | 84.9% | 70.0% |" in (tmp_path / "1a" / "table.md").read_text()
    first = read_results(tmp_path)["rows"][0]
    trainings.stopping = None
    trainings.words.clear()
    capsys.readouterr()
    assert run(*command) == 0
    assert trainings.words[0][-1].endswith("depth_2/pretrain")  # that command goes on by itself
    assert trainings.rows == ["depth_2", "depth_8"]
    assert read_results(tmp_path)["rows"][0] == first
    out = capsys.readouterr().out
    assert "[1/3] 1 block: finished already, 60.0%" in out and re.search(r"\[2/3] 2 blocks: to do; about \d:\d\d", out)
    trainings.words.clear()
    assert run(*command) == 0 and not trainings.words


def test_a_failed_row_is_named_and_the_others_go_on(shards, tmp_path, trainings, capsys):
    command = ("--table=1a", f"--data={shards}", f"--output={tmp_path}")
    trainings.failing = "depth_2/pretrain"
    assert run(*command) == 1
    assert trainings.rows == ["depth_1", "depth_8"]
    assert "ERROR: rows without a result: depth_2; the reasons are above" in capsys.readouterr().err
    assert "- 2 blocks: failed, keras_mae.pretrain: no room" in (tmp_path / "1a" / "table.md").read_text()
    trainings.failing = None
    trainings.words.clear()
    assert run(*command) == 0 and trainings.rows == ["depth_2"]
    assert "failed" not in (tmp_path / "1a" / "table.md").read_text()


def test_a_row_that_the_recipe_refuses_is_reported(shards, tmp_path, trainings, monkeypatch):
    rows = (dataclasses.replace(TABLES["1f"].rows[0], name="spiral", flags=("--mask_kind=spiral",)),)
    table = dataclasses.replace(TABLES["1f"], rows=(*rows, TABLES["1f"].rows[1]))
    monkeypatch.setitem(TABLES, "1f", table)
    assert run("--table=1f", f"--data={shards}", f"--output={tmp_path}") == 1
    assert states(tmp_path, "1f") == {"spiral": "refused", "block_50": "finished"}
    assert "refused, mask_kind must be one of" in (tmp_path / "1f" / "table.md").read_text()


def test_the_table_stands_beside_the_papers(shards, tmp_path, trainings):
    assert run("--table=1a", f"--data={shards}", f"--output={tmp_path}") == 0
    text = (tmp_path / "1a" / "table.md").read_text()
    assert "| decoder depth | here: fine-tuned | here: linear probe | paper: fine-tuned | paper: linear probe |" in text
    # sqrt(.6 x .4 / 5) = .219, sqrt(.45 x .55 / 5) = .222
    assert "| 1 block | 60.0% ± 21.9 | 45.0% ± 22.2 | 84.8% | 65.5% |" in text
    assert "15 images (`train`), fine-tuned on 4 (`labelled`), accuracy on 5 (`held_out`)" in text
    assert "Linear probes here: on all 15 images of `train` with their labels" in text
    assert (tmp_path / "1a" / "table.png").read_bytes() == b"drawn"


def test_probes_can_be_left_out(shards, tmp_path, trainings, capsys):
    command = ("--table=1c", f"--data={shards}", f"--output={tmp_path}", "--noprobe")
    assert run(*command) == 0
    assert {words[1] for words in trainings.words} == {"keras_mae.pretrain", "keras_mae.finetune"}
    assert "here: linear probe" not in (tmp_path / "1c" / "table.md").read_text()
    assert run(*command, "--probe_flags=--steps=3") == 1
    assert "--probe_flags are for linear probes" in capsys.readouterr().err


@pytest.mark.parametrize("failing", [None, "depth_2", "depth"])  # none, one, or all of the rows
def test_the_figure_shows_whatever_is_there(failing, shards, tmp_path, trainings):
    trainings.failing = failing
    assert run("--table=1a", f"--data={shards}", f"--output={tmp_path}") == (1 if failing else 0)
    with open(tmp_path / "figure.png", "wb") as file:
        draw_table(read_results(tmp_path), file)
    with Image.open(tmp_path / "figure.png") as figure:
        figure.load()
        assert figure.width > figure.height > 200


def test_the_standard_error_is_the_binomials():
    assert standard_error(90, 1000) == pytest.approx(100 * math.sqrt(0.9 * 0.1 / 1000))
    assert standard_error(100, 10) == 0


def test_other_settings_do_not_mix_with_finished_rows(shards, tmp_path, trainings, capsys):
    command = ("--table=1a", f"--data={shards}", f"--output={tmp_path}")
    assert run(*command) == 0
    before = (tmp_path / "1a" / "results.json").read_bytes()
    trainings.words.clear()
    assert run(*command, "--seed=1") == 1
    assert "holds finished rows of another run: seed was 0, received 1" in capsys.readouterr().err
    assert not trainings.words and (tmp_path / "1a" / "results.json").read_bytes() == before


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": [{}]}'])
def test_a_damaged_file_of_results_is_named(shards, tmp_path, trainings, capsys, content):
    (tmp_path / "1a").mkdir()
    (tmp_path / "1a" / "results.json").write_text(content)
    assert run("--table=1a", f"--data={shards}", f"--output={tmp_path}") == 1
    assert "results.json is damaged" in capsys.readouterr().err and not trainings.words


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--recipe=vit_giant"], "Unknown recipe. Expected one of: vit_tiny"),
        (["--recipe=digits_scratch"], "Unknown recipe."),  # there is none of that name to pre-train with
        (["--data=nowhere"], "nowhere does not exist"),
        (["--labels=none"], "has no split 'none'"),
        (["--val_split=labelled"], "--val_split=labelled is trained on"),
        (["--shared_flags=--steps"], "Missing value for flag --steps"),
        (["--shared_flags=--stepz=4"], "Unknown command line flag 'stepz'"),
        (["--shared_flags=--decoder_depth=4"], "Unknown command line flag 'decoder_depth'"),  # not fine-tuning's
        (["--pretrain_flags=--epochs=many"], "--epochs=many"),
        (["--pretrain_flags=--epochs=-1"], "epochs must be above 0"),
        (["--pretrain_flags=more"], "--pretrain_flags has a word that is no flag: 'more'"),
        (["--pretrain_flags='"], "No closing quotation"),
        (["--pretrain_flags=--decoder_depth=4"], "--decoder_depth is what table 1a varies"),
        (["--shared_flags=--seed=4"], "--seed cannot be given to every row"),
        (["--tokenizer=t.keras"], "--tokenizer is for table 1d"),
        (["--table=1d", "--tokenizer=t.keras"], "There is no file t.keras"),
    ],
)
def test_a_mistake_of_ablations_is_one_sentence(arguments, sentence, shards, tmp_path, trainings, capsys):
    assert run("--table=1a", f"--data={shards}", f"--output={tmp_path / 'out'}", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error and error.count("\n") == 1
    assert not trainings.words and not (tmp_path / "out").exists()


def test_a_set_that_cannot_be_fine_tuned_is_refused(tmp_path, trainings, capsys):
    image = encode(np.zeros((8, 8), np.uint8))
    (tmp_path / "a").mkdir()
    write_shard_set(tmp_path / "a", [image, image], shard_samples=[2])
    assert run("--table=1a", f"--data={tmp_path / 'a'}", f"--output={tmp_path}") == 1
    assert "has no classes" in capsys.readouterr().err
    (tmp_path / "b").mkdir()
    write_shard_set(tmp_path / "b", [image, image], shard_samples=[2], labels=[0, 1], classes=("x", "y"))
    assert run("--table=1a", f"--data={tmp_path / 'b'}", f"--output={tmp_path}") == 1
    assert "has no split val or held_out to measure accuracy on" in capsys.readouterr().err


def test_the_flags_for_all_rows_are_those_of_the_commands():
    from keras_mae import run_flags

    before = set(flags.FLAGS)
    run_flags.define_run_flags()
    defined = set(flags.FLAGS) - before
    for name in defined:
        delattr(flags.FLAGS, name)
    assert set(RUN_FLAGS) == defined - {"data", "split", "val_split", "run_dir"}


def test_a_failed_command_gives_its_own_sentence(capfd):
    code = "import sys; print('step 1', file=sys.stderr); print('ERROR: no room', file=sys.stderr); sys.exit(1)"
    with pytest.raises(StepError, match="no room$"):
        run_step(["-c", code])
    captured = capfd.readouterr()
    assert captured.err == "step 1\nERROR: no room\n" and captured.out.startswith("\n$ python -c 'import sys")
    with pytest.raises(StepError, match=f"ended by signal {signal.SIGKILL.value}$"):
        run_step(["-c", "import os; os.kill(os.getpid(), 9)"])
    with pytest.raises(KeyboardInterrupt):
        run_step(["-c", "import sys; sys.exit(130)"])
    run_step(["-c", "pass"])


def test_a_terminated_runner_lets_the_training_save_first(tmp_path):
    child = (
        "import pathlib, signal, sys, time\n"
        f"def save(*_): pathlib.Path({str(tmp_path / 'saved')!r}).write_text(''); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, save); print('ready', file=sys.stderr, flush=True); time.sleep(60)"
    )
    parent = f"import sys; from tools import ablate\nablate.run_step(['-c', {child!r}])"
    parent = f"import signal; signal.signal(signal.SIGTERM, signal.default_int_handler)\n{parent}"
    root = Path(tools.__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", parent], cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr.readline() == "ready\n"
    process.terminate()
    assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
    assert (tmp_path / "saved").exists()


def test_the_last_word_is_the_error():
    assert pass_on(iter(["a\n", "ERROR: wrong\n", "later\n", "\n"])) == "ERROR: wrong"
    assert pass_on(iter(["Traceback\n", "ValueError: x\n", "\n"])) == "ValueError: x"
    assert pass_on(iter([])) == ""


@pytest.mark.slow
def test_a_real_tiny_table(shards, tmp_path):
    words = f"--shared_flags={' '.join(word for word in TINY if not word.startswith('--recipe'))} --steps=2"
    decoder = f"--pretrain_flags={' '.join(TINY_DECODER)}"
    command = ("--table=1d", "--recipe=vit_tiny", f"--data={shards}", f"--output={tmp_path}", words, decoder)
    assert run(*command) == 0
    results = read_results(tmp_path, "1d")
    assert states(tmp_path, "1d") == {
        "pixels": "finished",
        "normalized_pixels": "finished",
        "pca": "finished",
        "tokens": "left out",
    }
    names = ("finetuned_percent", "linear_percent")
    assert all(0 <= row[name] <= 100 for row in results["rows"][:3] for name in names)
    assert (tmp_path / "1d" / "pca" / "pretrain" / "target" / "pca.npz").exists()
    assert len(notes(results)) == 5 and "PCA, 1 of 4 coefficients" in table_text(results)
    # What a study says of itself is enough to repeat its rows by hand.
    setting = {name: value for name, value in results["setting"].items() if name != "fingerprints"}
    study = Study(**setting, data=shards)
    assert (
        row_commands(study, TABLES["1d"].rows[0], PRETRAIN_RECIPES["vit_tiny"], tmp_path)[0][1] == "keras_mae.pretrain"
    )
