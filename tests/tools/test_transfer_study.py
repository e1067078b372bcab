"""The transfer study asks for the right trainings, goes on where it stopped, and says what became of every accuracy.

Trainings are faked, but for one slow test; what a faked one reaches depends on its run folder.
"""

import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from fixtures.commands import TINY, TINY_DECODER, run_command
from fixtures.shard_sets import encode

from keras_mae.evaluation.results_file import write_results
from pipeline.sources import FolderSource
from tools import transfer_report, transfer_study
from tools.shard_plan import ShardOptions
from tools.sharding import make_shards
from tools.study_steps import StepError
from tools.transfer_plan import PROBED, SCRATCH, TUNED, Row, Study, rows_of
from tools.transfer_report import table_text
from tools.transfer_work import SPEED, START, finetune_work, pretrain_work, seconds_left

run = functools.partial(run_command, transfer_study)

# Of one seed: three accuracies of which two are fine-tunings, and one pre-training.
SHORT = ("--seeds=0", "--parts=labels,blocks", "--fractions=.5", "--trainable_blocks=1")


def write_split(folder, split, count):
    """Adds a split of 8x8 noise in two classes to a shard set."""
    random = np.random.default_rng(count)
    for number in range(count):
        path = folder / "images" / split / "xy"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(random.integers(0, 255, (8, 8), dtype="uint8")))
    source = FolderSource(str(folder / "images" / split))
    make_shards(source, folder / "shards", ShardOptions(split), workers=1, log=str)
    return str(folder / "shards")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """40 images in split train, 10 in val."""
    folder = tmp_path_factory.mktemp("study")
    write_split(folder, "train", 40)
    return write_split(folder, "val", 10)


class Commands:
    """Stands for the commands: remembers the words, and fails, stops or lies where they have a word."""

    def __init__(self):
        self.words, self.failing, self.stop_after, self.accuracy = [], None, None, {}

    def __call__(self, words):
        values = dict(word.removeprefix("--").partition("=")[::2] for word in words[2:])
        where = Path(values.get("run_dir") or values["output"])
        self.words.append(list(words))
        if self.failing and any(self.failing in word for word in words):
            raise StepError(f"{words[1]}: no room")
        if words[1] == "tools.label_subset":
            where.mkdir(exist_ok=True)
            (where / f"{values['split_name']}-000000.tar").write_bytes(b"")
        elif words[1] == "keras_mae.evaluate":
            accuracy = self.accuracy.get(where.name, 0.5) + 0.1 * int(where.parent.name.removeprefix("seed"))
            write_results(where / "evaluation" / values["split"] / "results.json", {"accuracy": accuracy})
        else:
            (where / "export").mkdir(parents=True, exist_ok=True)
        if self.stop_after is not None and len(self.words) > self.stop_after:
            raise KeyboardInterrupt  # as late as can be: the command was done, and nobody has heard of it

    @property
    def steps(self):
        """Command and run folder, split or results of each, in their order."""
        return [f"{words[1].split('.')[1]} {'/'.join(words[-1].split('/')[-2:])}" for words in self.words]


@pytest.fixture
def commands(monkeypatch):
    commands = Commands()
    monkeypatch.setattr(transfer_study, "run_step", commands)
    monkeypatch.setattr(transfer_report, "draw_panels", lambda panels, foot: b"drawn")
    return commands


def read(output):
    return json.loads((output / "results.json").read_text())


def make_study(**changes):
    values = {"data": "d", "recipe": "digits", "seeds": (0,), "fractions": (0.1, 1.0), "blocks_fraction": 0.1}
    values |= {"trainable_blocks": (0.0, 1.0), "mask_ratio": 0.75, "mask_ratios": (0.5, 0.75), "least_epochs": 1}
    values |= {"parts": ("labels", "blocks", "ratios"), "split": "train", "val_split": "val", "scratch_length": 2}
    return Study(**{**values, **changes})


def test_what_two_parts_need_is_measured_once():
    assert rows_of(make_study()) == [
        Row(0, TUNED, 0.1, 0.75),
        Row(0, SCRATCH, 0.1),
        Row(0, TUNED, 1.0, 0.75),
        Row(0, SCRATCH, 1.0),
        Row(0, TUNED, 0.1, 0.75, 0.0),
        Row(0, TUNED, 0.1, 0.75, 1.0),
        Row(0, TUNED, 0.1, 0.5),
        Row(0, PROBED, 1, 0.5),
        Row(0, PROBED, 1, 0.75),
    ]
    # Partial fine-tuning is compared with whole fine-tuning, whoever asks for it.
    assert rows_of(make_study(parts=("blocks",)))[0] == Row(0, TUNED, 0.1, 0.75)
    rows = rows_of(make_study(seeds=(0, 1)))
    assert len(rows) == 18 and len({row.name for row in rows}) == 18


def test_the_commands_of_a_short_study(shards, tmp_path, commands):
    flags = ("--shared_flags=--precision=float32", "--pretrain_flags=--epochs=2", "--finetune_flags=--noflip")
    flags += ("--scratch_flags=--base_learning_rate=.01",)
    assert run(f"--data={shards}", f"--output={tmp_path}", *SHORT, *flags) == 0
    seed, labels = f"{tmp_path}/seed0", f"{tmp_path}/labels"
    shared = ["--recipe=digits", "--seed=0", "--val_split=val"]
    few = [f"--data={labels}", "--split=train_0p5_seed0"]
    tuned = ["-m", "keras_mae.finetune", "--precision=float32", "--noflip"]
    encoder = f"--encoder={seed}/pretrain-ratio0.75/export/saved_model"
    evaluate = ["-m", "keras_mae.evaluate"]
    whole, partial = "fine_tuned-labels0.5-ratio0.75", "fine_tuned-labels0.5-ratio0.75-blocks1"
    evaluations = {
        name: [*evaluate, f"--run_dir={seed}/{name}", f"--data={shards}", "--split=val"]
        for name in (whole, partial, "from_scratch-labels0.5")
    }
    assert commands.words == [
        ["-m", "keras_mae.pretrain", "--precision=float32", "--epochs=2", *shared, f"--data={shards}"]
        + ["--split=train", "--mask_ratio=0.75", f"--run_dir={seed}/pretrain-ratio0.75"],
        ["-m", "tools.label_subset", f"--data={shards}", "--split=train", f"--output={labels}", "--val_split=val"]
        + ["--fraction=0.5", "--seed=0", "--split_name=train_0p5_seed0", "--workers=1"],
        [*tuned, *shared, encoder, *few, "--steps=200", f"--run_dir={seed}/{whole}"],
        evaluations[whole],
        [*tuned, "--recipe=digits_scratch", *shared[1:], "--from_scratch", "--base_learning_rate=.01", *few]
        + ["--steps=600", f"--run_dir={seed}/from_scratch-labels0.5"],
        evaluations["from_scratch-labels0.5"],
        [*tuned, *shared, encoder, "--trainable_blocks=1", *few, "--steps=200", f"--run_dir={seed}/{partial}"],
        evaluations[partial],
    ]


def test_probes_take_all_labels_and_cached_features(shards, tmp_path, commands):
    ratios = ("--seeds=2", "--parts=ratios", "--mask_ratios=.6", "--fractions=1", "--probe_flags=--steps=9")
    assert run(f"--data={shards}", f"--output={tmp_path}", *ratios) == 0
    assert commands.steps == [
        "pretrain seed2/pretrain-ratio0.6",
        "finetune seed2/fine_tuned-labels1-ratio0.6",
        "evaluate --split=val",
        "linear_probe seed2/linear_probe-labels1-ratio0.6",
        "evaluate --split=val",
        "pretrain seed2/pretrain-ratio0.75",  # the recipe's own
        "finetune seed2/fine_tuned-labels1-ratio0.75",
        "evaluate --split=val",
        "linear_probe seed2/linear_probe-labels1-ratio0.75",
        "evaluate --split=val",
    ]
    encoder = f"--encoder={tmp_path}/seed2/pretrain-ratio0.6/export/saved_model"
    assert commands.words[3][1:-1] == [
        *("keras_mae.linear_probe", "--cache_features", "--steps=9", "--recipe=digits", "--seed=2", "--val_split=val"),
        *(f"--data={shards}", "--split=train", encoder),
    ]


def test_a_recipe_without_one_for_scratch_trains_from_scratch_without_layer_decay(shards, tmp_path, commands):
    photographs = ("--recipe=vit_small", "--seeds=0", "--parts=labels", "--fractions=1", "--scratch_length=2")
    assert run(f"--data={shards}", f"--output={tmp_path}", *photographs) == 0
    assert [step.split()[0] for step in commands.steps] == ["pretrain", *2 * ("finetune", "evaluate")]
    scratch = commands.words[3]
    assert {"--recipe=vit_small", "--from_scratch", "--layer_decay=1", f"--data={shards}"} <= set(scratch)
    # 100 epochs of 40 images in batches of 256 are 16 steps
    assert "--steps=16" in commands.words[1] and "--steps=32" in scratch


def test_a_short_fine_tuning_sees_its_images_often_enough(shards, tmp_path, commands):
    flags = ("--seeds=0", "--parts=labels", "--fractions=.5,1", "--finetune_flags=--steps=3 --batch_size=4")
    assert run(f"--data={shards}", f"--output={tmp_path}", *flags, "--least_epochs=.5") == 0
    lengths = [word for words in commands.words for word in words if word.startswith("--steps=")][1::2]
    # .5 x 20 / 4 = 2.5 is less than 3, .5 x 40 / 4 = 5 is more; --steps=3 itself is a word of each
    assert lengths == ["--steps=3", "--steps=9", "--steps=5", "--steps=15"]


def test_a_length_in_images_stays_one(shards, tmp_path, commands):
    flags = ("--seeds=0", "--parts=labels", "--fractions=1", "--finetune_flags=--images=640", "--least_epochs=0")
    assert run(f"--data={shards}", f"--output={tmp_path}", *flags) == 0
    lengths = [word for words in commands.words for word in words if word.startswith(("--images", "--steps"))]
    # 640 images are 10 batches of 64; --images=640 itself is a word of each
    assert lengths == ["--images=640", "--images=640", "--images=640", "--images=1920"]


def test_from_scratch_sees_so_many_times_the_images_whatever_the_batch(shards, tmp_path, commands):
    base = ("--recipe=vit_base", "--seeds=0", "--parts=labels", "--fractions=1", "--least_epochs=0")
    assert run(f"--data={shards}", f"--output={tmp_path}", *base, "--finetune_flags=--steps=400") == 0
    # 400 batches of 1,024, three times; vit_base_scratch has batches of 4,096
    scratch = commands.words[3]
    assert "--recipe=vit_base_scratch" in scratch and scratch[-2] == "--steps=300"


@pytest.mark.parametrize("stop_after", range(8))
def test_a_study_goes_on_after_any_step(stop_after, shards, tmp_path, commands):
    command = (f"--data={shards}", f"--output={tmp_path}", *SHORT)
    commands.stop_after = stop_after
    assert run(*command) == 130
    interrupted = commands.words
    commands.words, commands.stop_after = [], None
    assert run(*command) == 0
    # The step that nobody heard of runs once more, and says itself that it is done; no other does.
    assert interrupted[-1] == commands.words[0] and len(interrupted) + len(commands.words) == 9
    assert [row["state"] for row in read(tmp_path)["rows"]] == 3 * ["finished"]
    commands.words = []
    assert run(*command) == 0 and not commands.words


def test_accuracies_are_those_of_the_results(shards, tmp_path, commands, capsys):
    commands.accuracy = {"fine_tuned-labels0.5-ratio0.75": 0.8, "fine_tuned-labels0.5-ratio0.75-blocks1": 0.6}
    assert run(f"--data={shards}", f"--output={tmp_path}", *SHORT, "--seeds=0,1") == 0
    rows = read(tmp_path)["rows"]
    found = {(row["seed"], row["protocol"], row["trainable_blocks"]): row["accuracy_percent"] for row in rows}
    assert found == {
        (0, TUNED, None): pytest.approx(80),
        (1, TUNED, None): pytest.approx(90),
        (0, SCRATCH, None): pytest.approx(50),
        (1, SCRATCH, None): pytest.approx(60),
        (0, TUNED, 1): pytest.approx(60),
        (1, TUNED, 1): pytest.approx(70),
    }
    assert {row["num_labels"] for row in rows} == {20}
    text = (tmp_path / "table.md").read_text()
    assert text in capsys.readouterr().out and text == table_text(read(tmp_path))
    assert "| all | 85.0% (80.0 to 90.0) |" in text and "| 1 | 65.0% (60.0 to 70.0) |" in text
    assert "| from scratch | 20 | - | 55.0% (50.0 to 60.0) |" in text
    # sqrt(.9 x .1 / 10) = .0949
    assert "9.49 at 90%" in text and "3 times the images of the fine-tuning" in text
    assert (tmp_path / "transfer.png").read_bytes() == b"drawn"


def test_an_accuracy_in_no_panel_is_told_though_another_is_the_same():
    def row(labels, ratio):
        shared = {"protocol": TUNED, "trainable_blocks": None, "seed": 0, "state": "finished", "accuracy_percent": 91.3}
        return {**shared, "num_labels": labels, "mask_ratio": ratio, "name": f"{labels}"}

    setting = {"recipe": "digits", "split": "train", "val_split": "val", "scratch_length": 3}
    rows = [row(100, 0.75), row(400, 0.75), row(4000, 0.5)]
    text = table_text({"rows": rows, "setting": setting, "num_images": 4000, "num_held_out": 1000})
    assert "| 400 = 10% | 91.3% |" in text and "| fine-tuned | 4,000 | 50% | 91.3% |" in text
    assert "| fine-tuned | 400 |" not in text


def test_a_failed_step_is_named_and_the_others_go_on(shards, tmp_path, commands, capsys):
    command = (f"--data={shards}", f"--output={tmp_path}", *SHORT)
    commands.failing = "/pretrain-ratio0.75"
    assert run(*command) == 1
    assert "ERROR: failed steps: seed0/pretrain-ratio0.75; the reasons are above" in capsys.readouterr().err
    assert [step.split()[0] for step in commands.steps] == ["pretrain", "label_subset", "finetune", "evaluate"]
    assert [row["state"] for row in read(tmp_path)["rows"]] == ["left out", "finished", "left out"]
    assert "left out, it needs seed0/fine_tuned-labels0.5-ratio0.75" in (tmp_path / "table.md").read_text()
    commands.failing, commands.words = None, []
    assert run(*command) == 0 and len(commands.words) == 5
    assert "left out" not in (tmp_path / "table.md").read_text()


def test_what_is_measured_may_grow_and_shrink(shards, tmp_path, commands):
    command = (f"--data={shards}", f"--output={tmp_path}")
    assert run(*command, *SHORT) == 0
    commands.words = []
    assert run(*command, *SHORT[:-1], "--trainable_blocks=1,2", "--seeds=0") == 0
    assert [step.split()[0] for step in commands.steps] == ["finetune", "evaluate"]
    commands.words = []
    assert (tmp_path / "transfer.png").exists()
    assert run(*command, "--seeds=0", "--parts=labels", "--fractions=.5") == 0 and not commands.words
    assert not (tmp_path / "transfer.png").exists()  # one place on each axis: the old picture shows another study
    assert run(*command, *SHORT) == 0 and not commands.words  # what was left out of a table is not lost


def test_an_encoder_that_is_gone_is_made_again_only_if_it_is_needed(shards, tmp_path, commands):
    command = (f"--data={shards}", f"--output={tmp_path}")
    assert run(*command, *SHORT) == 0
    (tmp_path / "seed0" / "pretrain-ratio0.75" / "export").rmdir()
    commands.words = []
    assert run(*command, *SHORT) == 0 and not commands.words
    assert run(*command, *SHORT[:-1], "--trainable_blocks=2") == 0
    assert [step.split()[0] for step in commands.steps] == ["pretrain", "finetune", "evaluate"]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--finetune_flags=--steps=9"], "finetune_flags was [], received ['--steps=9']"),
        (["--least_epochs=7"], "least_epochs was 10.0, received 7.0"),
        (["--val_split=other"], "val_split was 'val', received 'other'"),
    ],
)
def test_another_study_in_the_same_folder_is_refused(arguments, sentence, shards, tmp_path, commands, capsys):
    more = [write_split(tmp_path, split, 4) for split in ("train", "val", "other")][0]
    command = (f"--data={more}", f"--output={tmp_path / 'out'}", *SHORT)
    assert run(*command) == 0
    before = (tmp_path / "out" / "results.json").read_bytes()
    commands.words = []
    assert run(*command, *arguments) == 1
    error = capsys.readouterr().err
    assert "holds finished steps of another study" in error and sentence in error
    assert not commands.words and (tmp_path / "out" / "results.json").read_bytes() == before
    assert run(f"--data={shards}", *command[1:]) == 1
    assert "fingerprints was" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": []}', '{"steps": {"a": {}}, "setting": {}}'])
def test_a_file_that_is_no_study_is_named(content, shards, tmp_path, commands, capsys):
    (tmp_path / "results.json").write_text(content)
    assert run(f"--data={shards}", f"--output={tmp_path}", *SHORT) == 1
    assert "holds no transfer study, or a damaged one" in capsys.readouterr().err and not commands.words


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--recipe=vit_giant"], "Unknown recipe. Expected one of: vit_tiny"),
        (["--data=nowhere"], "nowhere does not exist"),
        (["--split=none"], "has no split 'none'"),
        (["--val_split=train"], "--val_split=train is trained on"),
        (["--parts=labels,colours"], "--parts takes some of labels, blocks, ratios; received 'colours'"),
        (["--parts="], "--parts names no part"),
        (["--seeds=0,one"], "--seeds takes whole numbers from 0, separated by commas; received '0,one'"),
        (["--fractions=0,.5"], "--fractions takes shares above 0 and up to 1"),
        (["--fractions="], "--fractions takes shares above 0 and up to 1"),
        (["--blocks_fraction=2"], "--blocks_fraction takes shares above 0 and up to 1"),
        (["--mask_ratios=.5,1"], "--mask_ratios takes shares between 0 and 1"),
        (["--trainable_blocks=0,5"], "at most depth=4"),
        (["--trainable_blocks=.7"], "trainable_blocks must be 0 (the head alone), 0.5"),
        (["--finetune_flags=--trainable_blocks=2"], "--trainable_blocks cannot be given to every training"),
        (["--shared_flags=--seed=2"], "--seed cannot be given to every training"),
        (["--shared_flags=--mask_ratio=.5"], "Unknown command line flag 'mask_ratio'"),
        (["--probe_flags=more"], "--probe_flags has a word that is no flag"),
        (["--scratch_flags=--layer_decay=2"], "layer_decay must be at least 0 and at most 1"),
        (["--pretrain_flags='"], "No closing quotation"),
        (["--least_epochs=inf", *SHORT], "--least_epochs takes a finite number; received inf"),
        (["--scratch_length=nan", *SHORT], "--scratch_length takes a finite number; received nan"),
        (["--scratch_flags=--epochs=9"], "--epochs is not for --scratch_flags: --scratch_length says how long"),
        (["--fractions=.025,1"], "0.025 of 40 labels is less than one for each of 2 classes"),
        (["--pretrain_flags=--depth=2"], "depth is 2 in pre-training and 4 with --finetune_flags"),
        (["--probe_flags=--depth=2"], "depth is 4 in pre-training and 2 with --probe_flags"),
    ],
)
def test_a_mistake_of_a_study_is_one_sentence(arguments, sentence, shards, tmp_path, commands, capsys):
    assert run(f"--data={shards}", f"--output={tmp_path / 'out'}", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error and error.count("\n") == 1
    assert not commands.words and not (tmp_path / "out").exists()


def test_the_estimate_counts_commands_and_learns_from_those_that_are_done(shards, tmp_path, commands, capsys):
    assert run(f"--data={shards}", f"--output={tmp_path}", *SHORT) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "To do: 1 keras_mae.pretrain, 1 tools.label_subset, 3 keras_mae.finetune, 3 keras_mae.evaluate"
    )
    assert re.search(r"About 0:\d\d:\d\d \(on two CPU cores; corrected as steps are done\)\n", out)
    assert re.search(r"\[8/8] seed0/fine_tuned\S+/evaluation; about 0:00:\d\d left in all", out)
    assert run(f"--data={shards}", f"--output={tmp_path}", *SHORT) == 0
    assert capsys.readouterr().out.startswith("All 8 steps are done")
    assert run(f"--data={shards}", f"--output={tmp_path}", *SHORT, "--seeds=5") == 0
    assert capsys.readouterr().out.startswith("To do: 1 keras_mae.pretrain")  # nothing of this one is done


def test_the_time_left_is_work_over_the_speed_that_was_seen():
    def step(name):
        return transfer_study.Step(name=name, words=("-m", "keras_mae.pretrain"), output=Path(name), work=10 * SPEED)

    steps, start = [step("a"), step("b")], START["keras_mae.pretrain"]
    assert seconds_left(steps, {}) == pytest.approx(2 * (start + 10))
    # twice as fast as usual
    assert seconds_left(steps, {"a": {"state": "finished", "seconds": start + 5}}) == pytest.approx(start + 5)
    assert seconds_left(steps, {"a": {"state": "failed"}}) == pytest.approx(start + 10)


def test_more_masks_and_fewer_trained_blocks_are_less_work():
    from keras_mae.recipes import FINETUNE_RECIPES, PRETRAIN_RECIPES

    digits = PRETRAIN_RECIPES["digits"]
    assert pretrain_work(digits, 0.5, 10) > pretrain_work(digits, 0.9, 10) > 0
    # ViT-B at 224 pixels: 197 tokens, 12 (24 x 768^2 + 4 x 197 x 768) operations each: 34.9e9 forward, twice that back
    base = FINETUNE_RECIPES["vit_base"]
    assert finetune_work(base, None, 1) / base.batch_size == pytest.approx(3 * 34.9, rel=0.01)
    assert finetune_work(base, 0, 1) / base.batch_size == pytest.approx(34.9, rel=0.01)


@pytest.mark.slow
@pytest.mark.timeout(900)  # ten commands
def test_a_real_tiny_study(shards, tmp_path):
    tiny = f"--shared_flags={' '.join(word for word in TINY if not word.startswith('--recipe'))} --steps=2"
    command = ("--recipe=vit_tiny", f"--data={shards}", f"--output={tmp_path}", tiny)
    command += (f"--pretrain_flags={' '.join(TINY_DECODER)}", "--least_epochs=0", "--seeds=0", "--fractions=.2")
    command += ("--trainable_blocks=1", "--mask_ratios=.75")
    assert run(*command) == 0
    results = read(tmp_path)
    rows = results["rows"]
    assert [(row["protocol"], row["num_labels"]) for row in rows] == [
        (TUNED, 8),
        (SCRATCH, 8),
        (TUNED, 8),
        (PROBED, 40),
    ]
    for row in rows:
        evaluated = json.loads((tmp_path / row["name"] / "evaluation" / "val" / "results.json").read_text())
        assert row["state"] == "finished" and row["accuracy_percent"] == 100 * evaluated["accuracy"]
        assert evaluated["run"]["data"]["samples"] == row["num_labels"] and evaluated["samples"] == 10
        assert evaluated["run"]["recipe"].get("trainable_blocks") == row["trainable_blocks"]
        assert evaluated["run"]["recipe"].get("from_scratch", False) == (row["protocol"] == SCRATCH)
    assert (tmp_path / "transfer.png").stat().st_size > 10_000
    assert run(*command) == 0 and read(tmp_path) == results
