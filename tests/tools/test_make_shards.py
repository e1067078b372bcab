"""make_shards: what it writes reads back bit for bit; no mistake or accident leaves a broken shard set."""

import contextlib
import errno
import json
import re
import subprocess
import sys
from collections import Counter

import pytest
import webdataset
from fixtures.commands import run_command
from PIL import Image

from keras_mae.commandline import CommandError
from pipeline import storage
from pipeline.image_files import ImageOptions
from pipeline.manifest import ManifestError, load_manifest
from pipeline.sources import FolderSource, SourceError, WebDatasetSource
from tools import make_shards as make_shards_command
from tools.output_lock import locked
from tools.shard_faults import find_faults
from tools.shard_plan import ShardOptions
from tools.sharding import make_shards

SHARD_MB = 0.07  # 2 shards for the images of these tests


RUN_ARGUMENTS = ("workers", "on_error", "restart", "log")


def make(source, output, split="train", **options):
    run = {"workers": 1, "log": str, **{name: options.pop(name) for name in RUN_ARGUMENTS if name in options}}
    options = ShardOptions(split, **{"shard_mb": SHARD_MB, **options})
    return make_shards(FolderSource(source), output, options, **run)


def read_with_webdataset(root, split="train"):
    tars = sorted(str(path) for path in root.glob(f"{split}-*.tar"))
    return list(webdataset.WebDataset(tars, shardshuffle=False))


def contents(root):
    """All files of a shard set by name, but for the report, which holds times."""
    return {path.name: path.read_bytes() for path in root.iterdir() if path.is_file() and path.name != "report.json"}


def files_in(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


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


def test_the_folder_holds_tars_indexes_sidecars_manifest_and_report_alone(images, tmp_path):
    shard_set = make(images, tmp_path / "out")
    listed = {name for shard in shard_set.splits["train"].shards for name in (shard.file, shard.index)}
    expected = listed | {"manifest.json", "report.json", "_info.json", "train.wids.json"}
    assert files_in(tmp_path / "out") == sorted(expected)
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
    with pytest.raises(CommandError, match="the input has changed"):
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
def test_a_file_that_is_no_image_is_named_and_nothing_half_written_is_left(images, tmp_path, data, workers):
    (images / "dog" / "bad.jpg").write_bytes(data)
    with pytest.raises(SourceError, match="'dog/bad.jpg' cannot be used: it is"):
        make(images, tmp_path / "out", workers=workers)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not list(tmp_path.rglob("*.tmp"))


def break_after(monkeypatch, name, error):
    # Writing the file `name` raises `error`.
    original = storage.write_atomically

    def write_atomically(path, data, **options):
        if str(path).endswith(name):
            raise error
        original(path, data, **options)

    monkeypatch.setattr(storage, "write_atomically", write_atomically)


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_said_plainly_and_the_run_goes_on_after_it(images, tmp_path, monkeypatch):
    make(images, tmp_path / "out", "val")
    val = contents(tmp_path / "out")
    break_after(monkeypatch, "train-000001.idx", FULL)
    with pytest.raises(CommandError, match=r"the disk of .*out is full: about 1 MB more are needed. Free some space"):
        make(images, tmp_path / "out")
    assert load_manifest(tmp_path / "out").splits.keys() == {"val"}
    assert {name: data for name, data in contents(tmp_path / "out").items() if name in val} == val
    monkeypatch.undo()
    lines = []
    make(images, tmp_path / "out", log=lines.append)
    assert lines[0] == "going on with an unfinished run: 1 of 2 shards are whole"
    assert list(find_faults(load_manifest(tmp_path / "out"))) == []


@pytest.mark.parametrize("name", ["plan.json", "train-000000.idx", "000000.json"])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()])
def test_a_run_that_ends_before_its_first_shard_is_whole_leaves_nothing(images, tmp_path, monkeypatch, name, error):
    break_after(monkeypatch, name, error)
    with pytest.raises((CommandError, OSError, KeyboardInterrupt)):
        make(images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["000000.json", "train-000001.idx", "report.json", "_info.json", "train.wids.json", "manifest.json"]
)
def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(images, tmp_path, monkeypatch, name):
    break_after(monkeypatch, name, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        make(images, tmp_path / "out")
    with pytest.raises(ManifestError, match="no finished shard set|does not exist"):
        load_manifest(tmp_path / "out")
    monkeypatch.undo()
    make(images, tmp_path / "out")
    make(images, tmp_path / "expected")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def begin(images, output, monkeypatch, **options):
    # A run that ends with one of two shards whole.
    break_after(monkeypatch, "train-000001.idx", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        make(images, output, **options)
    monkeypatch.undo()
    assert "train-000000.tar" in files_in(output)


def test_an_unfinished_run_does_not_go_on_with_other_options(images, tmp_path, monkeypatch):
    begin(images, tmp_path / "out", monkeypatch)
    before = files_in(tmp_path / "out")
    with pytest.raises(CommandError, match="begun otherwise: seed was 0 and is now 1. .*--restart"):
        make(images, tmp_path / "out", seed=1)
    with pytest.raises(CommandError, match="encoder was 'keep' and is now 'jpeg'; quality was None and is now 50"):
        make(images, tmp_path / "out", images=ImageOptions(encoder="jpeg", quality=50))
    assert files_in(tmp_path / "out") == before


def test_an_unfinished_run_does_not_go_on_with_changed_images(images, tmp_path, monkeypatch):
    begin(images, tmp_path / "out", monkeypatch)
    path = images / "cat" / "1.JPEG"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CommandError, match="begun otherwise: a file of the input was written again since"):
        make(images, tmp_path / "out")
    path.unlink()
    with pytest.raises(CommandError, match="begun otherwise: the input has changed"):
        make(images, tmp_path / "out")


def test_restart_begins_an_unfinished_run_anew(images, tmp_path, monkeypatch):
    begin(images, tmp_path / "out", monkeypatch, shard_mb=0.04)
    make(images, tmp_path / "out", shard_mb=1, seed=1, restart=True)  # fewer shards: the old ones have to go
    make(images, tmp_path / "expected", shard_mb=1, seed=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_a_shard_that_was_deleted_since_is_written_again(images, tmp_path, monkeypatch):
    begin(images, tmp_path / "out", monkeypatch)
    (tmp_path / "out" / "train-000000.tar").unlink()
    lines = []
    make(images, tmp_path / "out", log=lines.append)
    assert not lines[0].startswith("going on")
    assert list(find_faults(load_manifest(tmp_path / "out"))) == []


def test_a_torn_record_of_a_shard_is_as_good_as_none(images, tmp_path, monkeypatch):
    begin(images, tmp_path / "out", monkeypatch)
    (tmp_path / "out" / ".train.unfinished" / "000000.json").write_bytes(b"")
    make(images, tmp_path / "out")
    assert list(find_faults(load_manifest(tmp_path / "out"))) == []


def test_a_second_run_is_refused_while_the_first_one_writes(images, tmp_path):
    make(images, tmp_path / "out", "val")
    with locked(tmp_path / "out"), pytest.raises(CommandError, match="another process is writing to .*out"):
        make(images, tmp_path / "out")
    make(images, tmp_path / "out")


def test_damaged_images_are_skipped_counted_and_listed(images, tmp_path):
    (images / "dog" / "bad.jpg").write_bytes(b"no image")
    cut = images / "cat" / "1.JPEG"
    cut.write_bytes(cut.read_bytes()[:-20])
    lines = []
    shard_set = make(images, tmp_path / "out", on_error="skip", log=lines.append)
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())["splits"]["train"]
    assert shard_set.splits["train"].samples == report["samples"] == 29
    assert {sample["name"] for sample in report["skipped"]["samples"]} == {"dog/bad.jpg", "cat/1.JPEG"}
    assert all(sample["reason"].startswith(repr(sample["name"])) for sample in report["skipped"]["samples"])
    assert "2 skipped (see" in lines[-1]
    assert list(find_faults(load_manifest(tmp_path / "out"))) == []


def test_a_run_that_failed_on_an_image_goes_on_without_it(images, tmp_path):
    # on_error does not decide the bytes of the shards that were whole before the failure
    (images / "emu" / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(SourceError, match="'emu/bad.jpg' cannot be used.* --on_error=skip .*--restart"):
        make(images, tmp_path / "out", shard_mb=0.02)
    make(images, tmp_path / "out", shard_mb=0.02, on_error="skip")
    make(images, tmp_path / "expected", shard_mb=0.02, on_error="skip")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_a_source_without_one_usable_image_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"x")
    with pytest.raises(CommandError, match="none of the 1 images of 'train' can be used; the first one: 'a.jpg'"):
        make(tmp_path / "in", tmp_path / "out", on_error="skip")


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
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(storage, "make_folder", denied)
    with pytest.raises(CommandError, match="out cannot be written: Permission denied"):
        make(images, tmp_path / "out")


def test_the_command_says_in_one_line_what_it_wrote(images, tmp_path):
    done = command(f"--input={images}", f"--output={tmp_path / 'out'}", "--workers=1", f"--shard_mb={SHARD_MB}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("wrote 30 samples (train), 3 classes, 2 shards, ")
    assert len(done.stdout.splitlines()) == 1
    assert list(find_faults(load_manifest(tmp_path / "out"))) == []


def test_mistakes_on_the_command_line_are_one_line_and_exit_code_1(images, tmp_path, capsys):
    output = f"--output={tmp_path / 'out'}"
    for arguments, message in (
        ([f"--input={tmp_path / 'nowhere'}", output], "nowhere does not exist; expected a folder"),
        ([f"--input={images}", output, "--source=zip"], "--source must be one of folder, imagenet, .*, received 'zip'"),
        ([f"--input={images}"], "--output=FOLDER is missing"),
        ([f"--input={images}", output, "images"], "unexpected argument 'images'"),
    ):
        assert run_command(make_shards_command, *arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("ERROR: ") and len(error.splitlines()) == 1
        assert re.search(message, error)


def test_neither_tool_imports_tensorflow_or_keras():
    program = (
        "import sys, tools.make_shards, tools.verify_shards, tools.worker_pool\n"
        "print([name for name in ('tensorflow', 'keras', 'webdataset') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_run_that_loses_a_race_leaves_the_finished_split_alone(images, tmp_path, monkeypatch):
    # Without locks, as on object stores: another run finishes the split while this one writes, and this one fails.
    expected = make(images, tmp_path / "expected")
    monkeypatch.setattr("tools.sharding.locked", lambda *arguments: contextlib.nullcontext())
    original = storage.open_atomically

    def open_atomically(path, **options):
        if not (tmp_path / "out" / "manifest.json").exists():
            monkeypatch.setattr(storage, "open_atomically", original)
            make(images, tmp_path / "out")
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "open_atomically", open_atomically)
    with pytest.raises(KeyboardInterrupt):
        make(images, tmp_path / "out")
    assert load_manifest(tmp_path / "out").splits == expected.splits
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_files_of_others_are_never_replaced(images, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text('{"mine": 1}')
    with pytest.raises(CommandError, match="report.json exists and is not of a shard set"):
        make(images, tmp_path / "out")
    assert contents(tmp_path / "out") == {} and files_in(tmp_path / "out") == ["report.json"]


@pytest.mark.parametrize("text", ["[]", "null", '"x"', '{"shard": 1}', '{"shard": {}}'])
@pytest.mark.parametrize("name", ["plan.json", "000000.json"])
def test_a_hidden_folder_that_was_edited_is_no_traceback(images, tmp_path, monkeypatch, name, text):
    begin(images, tmp_path / "out", monkeypatch)
    (tmp_path / "out" / ".train.unfinished" / name).write_text(text)
    if name == "plan.json":
        with pytest.raises(CommandError, match="--restart"):
            make(images, tmp_path / "out")
    make(images, tmp_path / "out", restart=name == "plan.json")
    assert list(find_faults(load_manifest(tmp_path / "out"))) == []


def test_tars_are_not_sharded_into_their_own_folder(images, tmp_path):
    make(images, tmp_path / "out")
    with pytest.raises(CommandError, match="is the folder of the tars that are read"):
        make_shards(WebDatasetSource(tmp_path / "out"), tmp_path / "out", ShardOptions("other"), workers=1, log=str)


def test_workers_that_write_elsewhere_are_noticed(images, tmp_path):
    # Each process has a memory of its own.
    pytest.importorskip("fsspec")
    with pytest.raises(CommandError, match="though it was written: the workers do not see the same memory://"):
        make(images, f"memory://{tmp_path.name}", workers=2)


def test_a_web_server_cannot_be_written(images):
    with pytest.raises(CommandError, match="is on a web server, which cannot be written"):
        make(images, "https://example.org/shards")


def test_the_report_tells_the_rates_of_the_last_run_alone(images, tmp_path, monkeypatch):
    begin(images, tmp_path / "out", monkeypatch)
    shards = make(images, tmp_path / "out").splits["train"].shards
    last_run = json.loads((tmp_path / "out" / "report.json").read_bytes())["splits"]["train"]["last_run"]
    assert last_run["images"] == sum(shard.samples for shard in shards[1:]) > 0
    assert last_run["seconds"] >= 0 and last_run["images_per_second"] > 0 and last_run["megabytes_per_second"] > 0
