"""keras_mae.features: every image once, in order, with its name and class, of any blocks, and after an interruption."""

import json

import numpy as np
import pytest
from fixtures.commands import run_command
from fixtures.shard_sets import encode, write_shard_set
from fixtures.tiny_vit import TINY_VIT

from keras_mae import features
from keras_mae.evaluation.feature_files import FeatureWriter
from keras_mae.models import VisionTransformer

PLAIN = ("--batch_size=4", "--resize_size=8")


@pytest.fixture(scope="module")
def encoder():
    encoder = VisionTransformer(**TINY_VIT)
    encoder.build()
    return encoder


@pytest.fixture(scope="module")
def saved(encoder, tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "encoder.keras"
    encoder.save(path)
    return path


@pytest.fixture(scope="module")
def pictures():
    """uint8 (11, 8, 8)"""
    return np.random.default_rng(0).integers(0, 256, (11, 8, 8), dtype="uint8")


@pytest.fixture(scope="module")
def shards(pictures, tmp_path_factory):
    """Split train: two shards of 4 and 7; the last image has no class."""
    folder, labels = tmp_path_factory.mktemp("shards"), [0, 1, 2, 1, 0, 2, 1, 0, 0, 2, 1]
    files = [encode(picture) for picture in pictures]
    write_shard_set(folder, files, shard_samples=[4, 7], labels=labels, classes=("cat", "dog", "emu"))
    return str(folder)


def read(output):
    return np.load(output), [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def plain(saved, shards, tmp_path_factory):
    """Output of the plain command."""
    output = tmp_path_factory.mktemp("features") / "f.npy"
    assert run_command(features, f"--encoder={saved}", f"--data={shards}", f"--output={output}", *PLAIN) == 0
    return output


def test_every_image_of_a_split_has_its_row(plain, encoder, pictures):
    vectors, ids = read(plain)
    np.testing.assert_allclose(vectors, np.asarray(encoder(pictures[..., None]))[:, 0], atol=1e-5)
    assert [row["index"] for row in ids] == list(range(11))
    assert [row["key"] for row in ids] == [f"{number:08d}" for number in range(11)]
    assert [row["file"] for row in ids] == 4 * ["train-000000.tar"] + 7 * ["train-000001.tar"]
    assert [row["class"] for row in ids[:4]] == ["cat", "dog", "emu", "dog"]
    assert [row["label"] for row in ids[:4]] == [0, 1, 2, 1]


def test_the_same_command_again_says_that_it_is_finished(plain, saved, shards, capsys):
    before = plain.stat().st_mtime_ns
    assert run_command(features, f"--encoder={saved}", f"--data={shards}", f"--output={plain}", *PLAIN) == 0
    assert "is finished already" in capsys.readouterr().out
    assert plain.stat().st_mtime_ns == before
    flags = (f"--encoder={saved}", f"--data={shards}", f"--output={plain}", "--pool=patch_mean")
    assert run_command(features, *flags, *PLAIN) == 1
    assert "pool was 'class_token' and is now 'patch_mean'" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_to_the_same_numbers(plain, saved, shards, tmp_path, monkeypatch, capsys):
    output = tmp_path / "f.npy"
    monkeypatch.setattr(features, "BLOCK_BATCHES", 1)
    append, calls = FeatureWriter.append, []

    def interrupted(self, *arguments):
        calls.append(self.batches)
        if len(calls) == 2:
            raise KeyboardInterrupt
        append(self, *arguments)

    monkeypatch.setattr(FeatureWriter, "append", interrupted)
    flags = (f"--encoder={saved}", f"--data={shards}", f"--output={output}", *PLAIN)
    assert run_command(features, *flags) == 130
    assert not output.exists()
    assert run_command(features, *flags) == 0
    assert calls == [0, 1, 1, 2]
    for a, b in zip(read(output), read(plain), strict=True):
        np.testing.assert_array_equal(a, b)


def test_folders_of_images_give_the_same_and_blocks_follow_each_other(encoder, saved, pictures, tmp_path):
    for number, picture in enumerate(pictures):
        path = tmp_path / "images" / ("b", "a")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture))
    output = tmp_path / "f.npy"
    flags = (f"--encoder={saved}", f"--images={tmp_path / 'images'}", f"--output={output}", "--pool=tokens")
    assert run_command(features, *flags, "--layers=0,-1", "--nofinal_norm", *PLAIN) == 0
    vectors, ids = read(output)
    order = [*range(1, 11, 2), *range(0, 11, 2)]
    assert [row["file"] for row in ids] == [f"{'a' if n % 2 else 'b'}/{n:02d}.png" for n in order]
    assert [row["class"] for row in ids] == 5 * ["a"] + 6 * ["b"]
    tokens = np.asarray(encoder(pictures[order][..., None]))
    assert vectors.shape == (11, 17, 32)
    np.testing.assert_allclose(np.asarray(encoder.norm(vectors[:, :, 16:])), tokens, atol=1e-5)
    last = np.asarray(encoder.blocks[1](vectors[:, :, :16]))
    np.testing.assert_allclose(vectors[:, :, 16:], last, atol=1e-5)


def test_a_damaged_image_is_named_or_skipped_and_counted(saved, pictures, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, picture in enumerate(pictures[:5]):
        (folder / f"{number}.png").write_bytes(encode(picture) if number != 2 else b"no image")
    flags = (f"--encoder={saved}", f"--images={folder}", f"--output={tmp_path / 'f.npy'}", *PLAIN)
    assert run_command(features, *flags) == 1
    assert "Sample 2.png cannot be decoded: expected a JPEG, PNG or WebP" in capsys.readouterr().err
    assert run_command(features, *flags, "--max_corrupt=1") == 0
    assert "features of 4 images, 16 numbers each, 1 skipped" in capsys.readouterr().out
    assert [row["index"] for row in read(tmp_path / "f.npy")[1]] == [0, 1, 3, 4]


REFUSED = {
    "no data": ((), "Give either --data=SHARDS or --images=FOLDER"),
    "split of a folder": (("--images=.", "--split=val"), "--split is about a shard set, not about the folder"),
    "no such layer": (("--images=IMAGES", "--layers=2"), "from -2 to 1. Received: [2]"),
    "layers": (("--images=IMAGES", "--layers=last"), "layers takes numbers of blocks, such as -1 or 5,11"),
    "output": (("--images=IMAGES", "--output=f.txt"), "--output must end in .npy or .parquet. Received: f.txt"),
    "no folder": (("--images=/nowhere",), "/nowhere does not exist"),
    "no such encoder": (("--images=IMAGES", "--encoder=/nowhere.keras"), "There is no model at /nowhere.keras"),
    "crop": (("--images=IMAGES", "--resize_size=7"), "`resize_size` must be at least 8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_command_refuses(name, saved, tmp_path, capsys):
    flags, sentence = REFUSED[name]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(encode(np.zeros((8, 8), "uint8")))
    flags = [flag.replace("IMAGES", str(tmp_path / "images")) for flag in flags]
    output = tmp_path / "f.npy"
    assert run_command(features, f"--encoder={saved}", f"--output={output}", *flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error
    assert not output.exists()
