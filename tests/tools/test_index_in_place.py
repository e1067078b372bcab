"""Tars that stay as they are: what the index and the manifest say of them, and what cannot be indexed."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
import webdataset
from fixtures.commands import run_command
from fixtures.shard_sets import encode

from keras_mae.commandline import CommandError
from pipeline.manifest import load_manifest
from pipeline.shard_index import read_index
from pipeline.sources import SourceError
from tools import make_shards
from tools.index_in_place import index_in_place
from tools.shard_faults import find_faults


def image(value):
    return encode(np.full((4, 4, 3), value, np.uint8), "JPEG")


def write_tar(path, samples):
    path.parent.mkdir(exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for sample in samples:
            writer.write(sample)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two tars as a stranger writes them: folders and dots in keys, upper case, further members."""
    folder = tmp_path / "tars"
    first = [
        {"__key__": "a/0001", "jpg": image(1), "cls": b"2", "png": b"label map", "txt": "é".encode()},
        {"__key__": "a/0002 b", "JPEG": image(2), "cls": b" 0\n"},
    ]
    write_tar(folder / "x-0.tar", first)
    write_tar(folder / "x-1.tar", [{"__key__": "a/0001", "jpg": image(3), "cls": b"1"}])
    return folder


def index(folder, **options):
    return index_in_place(str(folder), workers=1, log=str, **options)


def test_the_tars_stay_and_become_a_shard_set(folder):
    before = {path.name: path.read_bytes() for path in folder.glob("*.tar")}
    shard_set = index(folder)
    assert {path.name: path.read_bytes() for path in folder.glob("*.tar")} == before
    assert load_manifest(folder) == shard_set
    assert [shard.file for shard in shard_set.split("train").shards] == ["x-0.tar", "x-1.tar"]
    assert [shard.samples for shard in shard_set.split("train").shards] == [2, 1]
    assert shard_set.split("train").shards[0].sha256 == hashlib.sha256(before["x-0.tar"]).hexdigest()
    assert shard_set.classes == ("0", "1", "2")
    assert list(find_faults(shard_set)) == []


def test_the_index_slices_the_images_and_labels(folder):
    index(folder)
    data, entries = (folder / "x-0.tar").read_bytes(), read_index(folder / "x-0.idx", 2)
    images = [data[o : o + n] for o, n in zip(entries.image_offset, entries.image_size, strict=True)]
    labels = [data[o : o + n] for o, n in zip(entries.label_offset, entries.label_size, strict=True)]
    assert (images, labels) == ([image(1), image(2)], [b"2", b" 0\n"])
    assert entries.keys == ("a/0001", "a/0002%20b")


def test_the_pipeline_reads_them(folder):
    import pipeline

    index(folder)
    batches = pipeline.load(str(folder), view="eval", batch_size=3, image_size=4, resize_size=4)
    features, labels, _ = next(iter(batches))
    assert labels.numpy().tolist() == [2, 0, 1]
    assert features["image"].numpy()[:, 0, 0, 0].tolist() == [1, 2, 3]


def test_a_pattern_makes_a_split_of_some_tars(folder):
    index(folder / "x-0.tar", split="train")
    shard_set = index(folder / "x-1.tar", split="val")
    assert {name: split.samples for name, split in shard_set.splits.items()} == {"train": 2, "val": 1}
    assert json.loads((folder / "_info.json").read_bytes())["splits"]["val"]["filenames"] == ["x-1.tar"]


def test_class_names_can_be_given(folder):
    assert index(folder, classes=("a", "b", "c")).classes == ("a", "b", "c")


def test_unlabelled_tars_have_no_classes(tmp_path):
    write_tar(tmp_path / "t" / "0.tar", [{"__key__": "1", "jpg": image(1), "txt": b"caption", "json": b"{}"}])
    assert index(tmp_path / "t").classes is None


def test_a_split_is_not_indexed_twice(folder):
    index(folder)
    with pytest.raises(CommandError, match="has a split 'train' already"):
        index(folder)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"jpg": image(1), "cls": b"cat"}, "'9.cls' holds 'cat'; expected a label"),
        ({"txt": b"x", "cls": b"1"}, "sample '9' has no image: it has cls, txt"),
        ({"jpg": image(1)}, "9.tar has no labels, and other tars have"),
        ({"jpg": image(1), "cls": b"9" * 5000}, "'9.cls' holds '99999"),
        ({"jpg": image(1), "cls": b"1000000"}, "9.tar has the label 1000000; .* expected less than 1000000"),
        ({"1.jpg": image(1), "2.jpg": image(1), "cls": b"1"}, "no image called 9.jpg .*, but 9.1.jpg, 9.2.jpg"),
        ({"jpg": image(1), "JPG": image(1)}, "'9' has two files of one kind"),
    ],
)
def test_samples_that_cannot_be_used_are_named(folder, sample, message):
    write_tar(folder / "9.tar", [{"__key__": "9", **sample}])
    with pytest.raises(SourceError, match=message):
        index(folder)
    assert not (folder / "manifest.json").exists()


def test_labels_of_some_samples_are_refused(folder):
    samples = [{"__key__": "8", "jpg": image(1), "cls": b"1"}, {"__key__": "9", "jpg": image(1)}]
    write_tar(folder / "9.tar", samples)
    with pytest.raises(SourceError, match="9.tar has labels for some of its samples only: '9' has none"):
        index(folder)


def test_a_cut_tar_is_refused(folder):
    data = (folder / "x-0.tar").read_bytes()
    (folder / "x-0.tar").write_bytes(data[:-10240])
    with pytest.raises(SourceError, match="x-0.tar is cut"):
        index(folder)


def write_members(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_labels_are_found_in_upper_case_too(tmp_path):
    write_members(tmp_path / "0.tar", [("0.CLS", b"1"), ("0.JPG", image(1)), ("1.Cls", b"3"), ("1.JPG", image(1))])
    shard_set = index(tmp_path)
    assert shard_set.classes == ("0", "1", "2", "3")
    assert read_index(tmp_path / "0.idx", 2).label_size.tolist() == [1, 1]
    assert list(find_faults(shard_set)) == []


def test_files_that_belong_to_no_sample_are_no_faults(tmp_path):
    write_members(tmp_path / "0.tar", [("README", b"x"), ("0.jpg", image(1)), (".a.jpg", b"x"), ("1.jpg", image(1))])
    shard_set = index(tmp_path)
    assert shard_set.split("train").samples == 2
    assert list(find_faults(shard_set)) == []


@pytest.mark.parametrize("name", ["a.idx", "a", "a.TAR", ".a.tar"])
def test_tars_of_other_names_are_refused(folder, name):
    (folder / "x-0.tar").rename(folder / name)
    before = (folder / name).read_bytes()
    with pytest.raises(CommandError, match=f"end in .tar and begin with no dot, received '{name}'"):
        index(folder / name)
    assert (folder / name).read_bytes() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x-1.idx", "x-1.idx exists and is no index of x-1.tar; move it away"),
        ("_info.json", "_info.json exists and is not of a shard set; move it away"),
        ("train.wids.json", "train.wids.json exists and is not of a shard set; move it away"),
    ],
)
def test_files_of_others_are_not_replaced(folder, name, message):
    (folder / name).write_text('{"mine": 1}')
    with pytest.raises(CommandError, match=message):
        index(folder)
    assert (folder / name).read_text() == '{"mine": 1}'
    assert sorted(path.name for path in folder.iterdir()) == sorted([name, "x-0.tar", "x-1.tar"])


def test_a_run_that_was_killed_before_its_manifest_is_begun_anew(folder):
    index(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "manifest.json").unlink()
    others = [".a.idx.123.tmp", ".x-0.tar.123.tmp", ".x-0.idx.tmp"]
    for name in [".x-0.idx.123.tmp", ".manifest.json.4.tmp", "._info.json.5.tmp", ".train.wids.json.6.tmp", *others]:
        (folder / name).write_bytes(b"")
    index(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {**before, **dict.fromkeys(others, b"")}


def test_an_index_of_dali_may_be_replaced(folder):
    (folder / "x-0.idx").write_text("v1.1 2\njpg 512 9\njpg 2048 9\n")
    assert list(find_faults(index(folder))) == []


def test_a_tar_is_in_one_split_only(folder):
    index(folder / "x-0.tar")
    with pytest.raises(CommandError, match="x-0.tar is in the split 'train' of .* already"):
        index(folder, split="val")


def test_labelled_tars_do_not_join_unlabelled_splits(folder):
    write_tar(folder / "0.tar", [{"__key__": "1", "jpg": image(1)}])
    index(folder / "0.tar")
    with pytest.raises(CommandError, match="the tars have labels .*, and the splits of .* have no classes"):
        index(folder / "x-*.tar", split="val")


def test_class_names_must_differ(folder):
    with pytest.raises(CommandError, match="--classes name 'a' twice"):
        index(folder, classes=("a", "b", "a"))


def test_too_few_class_names_are_refused(folder):
    with pytest.raises(CommandError, match="labels up to 2, and there are 2 classes"):
        index(folder, classes=("a", "b"))


def test_the_command_indexes(folder, capsys):
    arguments = ("--source=webdataset", f"--input={folder}", "--in_place", "--workers=2")
    assert run_command(make_shards, *arguments) == 0
    assert capsys.readouterr().out.startswith("indexed 3 samples (train) in 2 tars, which stay as they are")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source=folder", "--in_place"], "--in_place is for --source=webdataset"),
        (["--source=webdataset", "--in_place", "--output=x"], "leave --output out"),
        (["--source=webdataset", "--in_place", "--on_error=skip"], "leave --on_error out"),
        (["--source=webdataset", "--in_place", "--seed=1"], "leave options for tars and images out"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder, arguments, message, capsys):
    assert run_command(make_shards, f"--input={folder}", *arguments) == 1
    assert message in capsys.readouterr().err
