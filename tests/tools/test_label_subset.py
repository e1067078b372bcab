"""Subsets of a shard set with few labels: balanced, seeded, one in another, and read like any shard set."""

import collections

import numpy as np
import pytest
from fixtures.commands import run_command
from fixtures.shard_sets import encode

import pipeline
from pipeline.manifest import load_manifest
from pipeline.sources import FolderSource
from tools import label_subset
from tools.shard_plan import ShardOptions
from tools.sharding import make_shards

COUNTS = {"a": 12, "b": 20, "c": 8}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """40 images of three classes, each of one grey of its own, in several shards, and 10 to evaluate on."""
    folder = tmp_path_factory.mktemp("subset")
    grey = iter(range(100))
    for split, share in (("train", 1), ("val", 0.25)):
        for name, count in COUNTS.items():
            for number in range(int(share * count)):
                path = folder / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode(np.full((4, 4), next(grey), np.uint8)))
        options = ShardOptions(split, shard_samples=15)
        make_shards(FolderSource(str(folder / split)), folder / "shards", options, workers=1, log=str)
    return folder / "shards"


def run(shards, output, *flags):
    return run_command(label_subset, f"--data={shards}", f"--output={output}", "--workers=1", *flags)


def read(folder, split):
    """Grey value -> label of the samples of a split."""
    samples = load_manifest(folder).split(split).samples
    batch = next(iter(pipeline.load(folder, split=split, view="eval", batch_size=samples, image_size=4, channels=1)))
    return dict(zip(batch[0]["image"][:, 0, 0, 0].numpy().tolist(), batch[1].numpy().tolist(), strict=True))


def test_so_many_of_each_class_with_their_own_labels(shards, tmp_path):
    whole, output = read(shards, "train"), tmp_path / "few"
    assert run(shards, output, "--per_class=3", "--split_name=three") == 0
    assert run(shards, output, "--per_class=5", "--split_name=five") == 0
    three, five = read(output, "three"), read(output, "five")
    assert collections.Counter(three.values()) == {0: 3, 1: 3, 2: 3}
    assert three.items() < five.items() <= whole.items()
    assert run(shards, output, "--per_class=3", "--split_name=other", "--seed=1") == 0
    assert read(output, "other").keys() != three.keys()


def test_a_share_of_each_class(shards, tmp_path):
    assert run(shards, tmp_path / "few", "--fraction=.25") == 0
    assert collections.Counter(read(tmp_path / "few", "train").values()) == {0: 3, 1: 5, 2: 2}


def test_the_split_to_evaluate_on_is_the_same_and_takes_no_room(shards, tmp_path):
    output = tmp_path / "few"
    assert run(shards, output, "--per_class=1") == 0
    before = (output / "manifest.json").read_bytes()
    ours, theirs = load_manifest(output), load_manifest(shards)
    assert ours.fingerprint("val") == theirs.fingerprint("val") and ours.classes == theirs.classes
    assert read(output, "val") == read(shards, "val")
    for shard in theirs.split("val").shards:
        assert (output / shard.file).stat().st_ino == (shards / shard.file).stat().st_ino
    assert run(shards, output, "--per_class=1") == 0
    assert (output / "manifest.json").read_bytes() == before


REFUSED = {
    "none": ((), "Give either --per_class or --fraction"),
    "both": (("--per_class=1", "--fraction=.1"), "Give either --per_class or --fraction"),
    "all": (("--fraction=1",), "--fraction must be above 0 and below 1, received 1"),
    "too many": (("--per_class=10",), "1 of 3 classes do not have 10 images, such as 'c' with 8 images in all"),
    "too few": (("--fraction=.01",), "classes do not have an image in 0.01 of it"),
    "its own": (("--per_class=1", "--val_split=train"), "--val_split=train is the split that images are chosen for"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_subset_that_cannot_be_made_is_one_sentence(name, shards, tmp_path, capsys):
    flags, sentence = REFUSED[name]
    assert run(shards, tmp_path / "few", *flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error and error.count("\n") == 1
    assert not (tmp_path / "few").exists()


def test_a_subset_does_not_mix_with_its_whole_or_another(shards, tmp_path, capsys):
    assert run(shards, shards, "--per_class=1", "--split_name=one") == 1
    assert "choose another folder than --data" in capsys.readouterr().err
    assert run(shards, tmp_path / "few", "--per_class=1") == 0
    assert run(shards, tmp_path / "few", "--per_class=2") == 1
    assert "has a split 'train' already, made otherwise" in capsys.readouterr().err
