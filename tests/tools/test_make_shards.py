"""make_shards: what it writes reads back bit for bit; no mistake or accident leaves a broken shard set."""

import errno
import json
import subprocess
import sys
from collections import Counter

import pytest
import webdataset
from PIL import Image

from keras_mae.commandline import CommandError
from pipeline import writing
from pipeline.manifest import ManifestError, load_manifest
from pipeline.sources import FolderSource, SourceError
from tools.make_shards import make_shards
from tools.verify_shards import find_faults

SHARD_MB = 0.07  # 2 shards for the images of these tests


def make(source, output, split="train", **options):
    options = {"shard_mb": SHARD_MB, "workers": 1, "log": lambda line: None, **options}
    return make_shards(FolderSource(source), output, split, **options)


def read_with_webdataset(root, split="train"):
    tars = sorted(str(path) for path in root.glob(f"{split}-*.tar"))
    return list(webdataset.WebDataset(tars, shardshuffle=False))


def contents(root):
    return {path.name: path.read_bytes() for path in root.iterdir()}


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tools.make_shards", *arguments], capture_output=True, text=True, check=False
    )


def test_webdataset_reads_back_every_file_bit_for_bit(images, tmp_path):
    shard_set = make(images, tmp_path / "out")
    samples = read_with_webdataset(tmp_path / "out")
    assert len(shard_set.splits["train"].shards) > 1
    assert [sample["__key__"] for sample in samples] == [f"{i:08d}" for i in range(30)]
    read = {}
    for sample in samples:
        path = json.loads(sample["json"])["source"]
        extension = {"JPEG": "jpg"}.get(path.rsplit(".", 1)[1], path.rsplit(".", 1)[1])
        read[path] = sample[extension]
        assert shard_set.classes[int(sample["cls"])] == path.split("/")[0]
    assert read == {str(path.relative_to(images)): path.read_bytes() for path in images.rglob("*.*")}


def test_a_flat_folder_gives_samples_without_labels(flat_images, tmp_path):
    assert make(flat_images, tmp_path / "out").classes is None
    samples = read_with_webdataset(tmp_path / "out")
    assert len(samples) == 8
    assert {key for sample in samples for key in sample if not key.startswith("__")} == {"png", "json"}


def test_a_png_named_jpeg_is_stored_as_png_unchanged(images, tmp_path):
    wrong = images / "cat" / "wrong.JPEG"
    Image.new("RGB", (4, 4)).save(wrong, format="PNG")
    make(images, tmp_path / "out")
    found = [s for s in read_with_webdataset(tmp_path / "out") if b"wrong.JPEG" in s["json"]]
    assert [sample["png"] for sample in found] == [wrong.read_bytes()]


def test_the_bytes_are_the_same_in_every_run_and_with_any_number_of_workers(images, tmp_path):
    for name, workers in (("a", 1), ("b", 1), ("c", 2)):
        make(images, tmp_path / name, val_fraction=0.2, workers=workers)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def test_the_seed_changes_the_order_and_nothing_else(images, tmp_path):
    orders = []
    for seed in (0, 1):
        make(images, tmp_path / str(seed), seed=seed)
        orders.append([sample["json"] for sample in read_with_webdataset(tmp_path / str(seed))])
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_no_shard_is_larger_than_asked_for(images, tmp_path):
    make(images, tmp_path / "out", shard_mb=0.0205)
    assert max(path.stat().st_size for path in (tmp_path / "out").glob("*.tar")) == 20480


def test_the_folder_holds_tars_indexes_and_the_manifest_alone(images, tmp_path):
    shard_set = make(images, tmp_path / "out")
    listed = {name for shard in shard_set.splits["train"].shards for name in (shard.file, shard.index)}
    assert set(contents(tmp_path / "out")) == listed | {"manifest.json"}
    assert load_manifest(tmp_path / "out") == shard_set


def test_no_file_names_the_place_where_it_was_made(images, tmp_path):
    make(images, tmp_path / "out")
    assert not [name for name, data in contents(tmp_path / "out").items() if str(tmp_path).encode() in data]


def test_val_fraction_makes_a_stratified_second_split(images, tmp_path):
    shard_set = make(images, tmp_path / "out", val_fraction=0.2)
    labels = {
        split: Counter(int(sample["cls"]) for sample in read_with_webdataset(tmp_path / "out", split))
        for split in ("train", "val")
    }
    assert labels == {"train": {0: 12, 1: 8, 2: 4}, "val": {0: 3, 1: 2, 2: 1}}
    assert [split.samples for split in shard_set.splits.values()] == [24, 6]


def test_another_split_is_added_to_the_manifest(images, tmp_path):
    first = make(images, tmp_path / "out")
    second = make(images, tmp_path / "out", "test", seed=5)
    assert list(second.splits) == ["train", "test"]
    assert second.splits["train"] == first.splits["train"]
    assert load_manifest(tmp_path / "out") == second


def test_a_split_with_some_of_the_classes_uses_their_numbers(images, tmp_path):
    make(images, tmp_path / "out")
    (images / "cat").rename(tmp_path / "moved")
    shard_set = make(images, tmp_path / "out", "val")
    assert shard_set.classes == ("cat", "dog", "emu")
    assert {int(sample["cls"]) for sample in read_with_webdataset(tmp_path / "out", "val")} == {1, 2}


def test_a_split_with_an_unknown_class_is_refused(images, tmp_path):
    make(images, tmp_path / "out")
    (images / "cat").rename(images / "cow")
    with pytest.raises(CommandError, match="does not know: 'cow' .*lacks: 'cat'"):
        make(images, tmp_path / "out", "val")


def test_labelled_and_unlabelled_splits_do_not_mix(images, flat_images, tmp_path):
    make(images, tmp_path / "out")
    with pytest.raises(CommandError, match="have 3 classes, and --input has no classes"):
        make(flat_images, tmp_path / "out", "val")


def test_a_finished_split_is_not_written_again(images, tmp_path):
    lines = []
    first = make(images, tmp_path / "out", val_fraction=0.1)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert make(images, tmp_path / "out", val_fraction=0.1, workers=2, log=lines.append) == first
    assert "nothing to do" in lines[-1]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times


def test_a_finished_split_is_not_replaced_by_another(images, tmp_path):
    make(images, tmp_path / "out")
    with pytest.raises(CommandError, match="already, made otherwise: seed was 0 and is now 1"):
        make(images, tmp_path / "out", seed=1)
    (images / "cat" / "1.JPEG").unlink()
    with pytest.raises(CommandError, match="source_fingerprint was '.*' and is now '"):
        make(images, tmp_path / "out")


def test_ignored_files_are_counted_and_named(images, tmp_path):
    (images / "cat" / "readme.txt").write_text("x")
    (images / "cat" / ".hidden.jpg").write_text("x")
    lines = []
    make(images, tmp_path / "out", log=lines.append)
    assert lines[0] == "ignored 1 file that is not an image by name: 'cat/readme.txt'"
    assert lines[-1].startswith("wrote 30 samples (train), 3 classes, ")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("data", [b"", b"not an image"])
def test_a_file_that_is_no_image_is_named_and_nothing_is_left(images, tmp_path, data, workers):
    (images / "dog" / "bad.jpg").write_bytes(data)
    with pytest.raises(SourceError, match="'dog/bad.jpg' cannot be used: it is"):
        make(images, tmp_path / "out", workers=workers)
    assert not (tmp_path / "out").exists()


def break_after(monkeypatch, number, error):
    # Writing shard `number` begins, and then raises `error`.
    original = writing.write_index

    def write_index(path, rows):
        if path.name == f"train-{number:06d}.idx":
            raise error
        original(path, rows)

    monkeypatch.setattr(writing, "write_index", write_index)


def test_a_full_disk_is_said_plainly_and_leaves_the_other_split_alone(images, tmp_path, monkeypatch):
    make(images, tmp_path / "out", "val")
    before = contents(tmp_path / "out")
    break_after(monkeypatch, 1, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(CommandError, match="the disk of .*out is full: .* 1 of 2 shards fitted"):
        make(images, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_an_interrupted_run_leaves_nothing(images, tmp_path, monkeypatch):
    break_after(monkeypatch, 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        make(images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_killed_run_has_no_manifest_and_can_be_run_again(images, tmp_path):
    # A process that dies at the second index, as SIGKILL would end it.
    program = (
        "import os, sys; from pipeline import writing; original = writing.write_index\n"
        "die = lambda path, rows: os._exit(9) if '-000001' in path.name else original(path, rows)\n"
        "writing.write_index = die\n"
        "from pipeline.sources import FolderSource; from tools.make_shards import make_shards\n"
        f"make_shards(FolderSource(sys.argv[1]), sys.argv[2], workers=1, shard_mb={SHARD_MB})"
    )
    killed = subprocess.run([sys.executable, "-c", program, images, tmp_path / "out"], check=False)
    assert killed.returncode == 9
    assert ".train.unfinished" in contents(tmp_path / "out")
    with pytest.raises(ManifestError, match="no finished shard set"):
        load_manifest(tmp_path / "out")
    make(images, tmp_path / "out", shard_mb=1)  # fewer shards: the second tar of the killed run has to go
    make(images, tmp_path / "expected", shard_mb=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_foreign_tars_are_not_overwritten(images, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train-000005.tar").write_bytes(b"precious")
    with pytest.raises(CommandError, match="train-000005.tar exists, and no manifest.json lists it"):
        make(images, tmp_path / "out")
    assert contents(tmp_path / "out") == {"train-000005.tar": b"precious"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 0.0}, "--val_fraction must lie between 0 and 1, both excluded, received 0.0"),
        ({"val_fraction": 1.0}, "received 1.0"),
        ({"val_fraction": 0.01}, "--val_fraction=0.01 of 30 images leaves none for 'val'"),
        ({"val_fraction": 0.1, "val_split": "train"}, "--split and --val_split must differ"),
        ({"workers": 0}, "--workers must be at least 1, received 0"),
        ({"shard_mb": 0}, "--shard_mb must be more than 0 .*received 0"),
        ({"shard_mb": float("nan")}, "--shard_mb must be more than 0"),
        ({"seed": -1}, "--seed must be .*received -1"),
    ],
)
def test_an_option_out_of_range_is_named(images, tmp_path, options, message):
    with pytest.raises(CommandError, match=message):
        make(images, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_split_name_that_would_break_file_names_is_refused(images, tmp_path):
    with pytest.raises(ManifestError, match="'a/b' cannot name a split"):
        make(images, tmp_path / "out", "a/b")


def test_the_output_may_not_lie_among_the_images(images):
    with pytest.raises(CommandError, match="lies in --input"):
        make(images, images / "shards")


def test_an_output_that_cannot_be_written_is_named(images, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CommandError, match="file is a file; expected a folder"):
        make(images, tmp_path / "file")
    with pytest.raises(CommandError, match="file/out cannot be written: Not a directory"):
        make(images, tmp_path / "file" / "out")


def test_a_folder_without_write_permission_is_named(images, tmp_path, monkeypatch):
    def denied(path, text):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.write_text", denied)
    with pytest.raises(CommandError, match="out cannot be written: Permission denied"):
        make(images, tmp_path / "out")


def test_the_command_says_in_one_line_what_it_wrote(images, tmp_path):
    done = command(f"--input={images}", f"--output={tmp_path / 'out'}", "--workers=1", f"--shard_mb={SHARD_MB}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("wrote 30 samples (train), 3 classes, 2 shards, ")
    assert len(done.stdout.splitlines()) == 1
    assert list(find_faults(load_manifest(tmp_path / "out"))) == []


def test_mistakes_on_the_command_line_are_one_line_and_exit_code_1(images, tmp_path):
    output = f"--output={tmp_path / 'out'}"
    for arguments, message in (
        ([f"--input={tmp_path / 'nowhere'}", output], "nowhere does not exist; expected a folder"),
        ([f"--input={images}", output, "--source=zip"], "--source must be one of folder, received 'zip'"),
        ([f"--input={images}"], "--output=FOLDER is missing"),
        ([f"--input={images}", output, "images"], "unexpected argument 'images'"),
    ):
        done = command(*arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("ERROR: ") and len(done.stderr.splitlines()) == 1
        assert message in done.stderr


def test_neither_tool_imports_tensorflow_or_keras():
    program = (
        "import sys, tools.make_shards, tools.verify_shards, tools.worker_pool\n"
        "print([name for name in ('tensorflow', 'keras', 'webdataset') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
