"""Repair: each kind of damage to each shard is named, and afterwards the bytes are those from before it."""

import dataclasses
import json
import re

import pytest
from fixtures.commands import run_command

from keras_mae.commandline import CommandError
from pipeline.manifest import load_manifest, read_manifest, write_manifest
from pipeline.shard_index import read_index
from pipeline.sources import FolderSource
from tools import verify_shards
from tools.repair_shards import repair_shards
from tools.shard_plan import ShardOptions
from tools.sharding import make_shards

NUM_SHARDS = 3


@pytest.fixture
def shards(images, tmp_path):
    options = ShardOptions(shard_mb=0.06, val_fraction=0.2)
    shard_set = make_shards(FolderSource(images), tmp_path / "out", options, workers=1, log=str)
    assert sum(len(split.shards) for split in shard_set.splits.values()) == NUM_SHARDS
    return tmp_path / "out"


def contents(root):
    return {path.name: path.read_bytes() for path in root.iterdir()}


def repair(root, images):
    """Faults that are left, and the lines that were said."""
    lines = []
    _, left = repair_shards(root, lambda split: {split: FolderSource(images)}, log=lines.append)
    return left, lines


def cut_in_a_header(data, index):
    return data[: index.image_offset[1] - 200]


def cut_in_data(data, index):
    return data[: index.image_offset[1] + 5]


def cut_between_samples(data, index):
    return data[: index.label_offset[1] - 512]  # the header of the second sample's first file is gone


def flip_a_byte(data, index):
    place = index.image_offset[2] + 3
    return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]


def damage_a_header(data, index):
    place = index.label_offset[2] - 512
    return data[:place] + b"\xff" * 100 + data[place + 100 :]


def append_another_tar(data, index):
    return data + data


def empty(data, index):
    return b""


DAMAGES = {
    cut_in_a_header: "has .* bytes, expected .*; it is cut",
    cut_in_data: "has .* bytes, expected .*; it is cut in the data of '",
    cut_between_samples: "has .* bytes, expected .*; it is cut after byte .*: the two empty blocks .* are missing",
    flip_a_byte: ": its contents have changed: sha256 is ",
    damage_a_header: ": its contents have changed: .*; it has a damaged header at byte ",
    append_another_tar: "has .* bytes, expected .*; it goes on at byte .*: a second tar was appended",
    empty: "has 0 bytes, expected ",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("number", range(NUM_SHARDS))
def test_every_damage_to_every_tar_is_named_and_mended(shards, images, number, damage, capsys):
    before = contents(shards)
    shard = [shard for split in load_manifest(shards).splits.values() for shard in split.shards][number]
    tar = shards / shard.file
    tar.write_bytes(damage(tar.read_bytes(), read_index(shards / shard.index, shard.samples)))
    assert verify_shards.verify_shards(shards) >= 1
    assert re.match(f"{shard.file}:? ?{DAMAGES[damage]}".replace(":? ?:", ":"), capsys.readouterr().out)
    left, lines = repair(shards, images)
    assert (left, lines[-1]) == ([], f"{shard.file}: written again")
    assert contents(shards) == before


@pytest.mark.parametrize(
    "name", ["train-000001.tar", "val-000000.idx", "train-000000.idx", "_info.json", "val.wids.json"]
)
def test_every_missing_file_is_named_and_written_again(shards, images, name):
    before = contents(shards)
    (shards / name).unlink()
    left, lines = repair(shards, images)
    assert left == [] and lines[0].startswith(name) and lines[-1] == f"{name}: written again"
    assert contents(shards) == before


def test_an_index_is_mended_without_the_source(shards):
    before = contents(shards)
    (shards / "train-000000.idx").write_bytes(b"v1.2 0\n")
    assert repair_shards(shards, lambda split: pytest.fail("the source was asked for"), log=str)[1] == []
    assert contents(shards) == before


def test_only_what_is_broken_is_written(shards, images):
    (shards / "train-000001.tar").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    repair(shards, images)
    changed = {p.name for p in shards.iterdir() if p.is_file() and p.stat().st_mtime_ns != times.get(p.name)}
    assert changed == {"train-000001.tar"}


def stale_manifest(shards, change):
    content = json.loads((shards / "manifest.json").read_bytes())
    change(content["splits"]["train"])
    (shards / "manifest.json").write_text(json.dumps(content))


def forget_the_last_shard(split):
    split["samples"] -= split["shards"].pop()["samples"]


def change_a_hash(split):
    split["shards"][0]["sha256"] = "0" * 64


def change_a_count(split):
    split["shards"][0]["samples"] += 1
    split["samples"] += 1


@pytest.mark.parametrize("change", [forget_the_last_shard, change_a_hash, change_a_count])
def test_a_stale_manifest_is_named_and_mended(shards, images, change):
    before = contents(shards)
    stale_manifest(shards, change)
    left, lines = repair(shards, images)
    assert left == []
    assert "manifest.json: mended, it did not agree with the source and the tars" in lines
    assert contents(shards) == before


def test_tars_of_another_run_under_an_old_manifest_are_written_again(shards, images, tmp_path):
    before = contents(shards)
    options = ShardOptions(shard_mb=0.06, val_fraction=0.2, seed=7)
    make_shards(FolderSource(images), tmp_path / "other", options, workers=1, log=str)
    for path in (tmp_path / "other").iterdir():
        if path.name not in ("manifest.json", "report.json"):
            (shards / path.name).write_bytes(path.read_bytes())
    assert repair(shards, images)[0] == []
    assert contents(shards) == before


def test_a_file_that_the_manifest_does_not_list_is_left(shards, images):
    (shards / "train-000009.tar").write_bytes(b"precious")
    left, _ = repair(shards, images)
    assert [fault.text[:17] for fault in left] == ["train-000009.tar:"]
    assert (shards / "train-000009.tar").read_bytes() == b"precious"


def test_another_source_is_refused_and_nothing_changes(shards, images):
    (shards / "train-000001.tar").write_bytes(b"")
    (images / "cat" / "1.JPEG").unlink()
    before = contents(shards)
    with pytest.raises(CommandError, match="--input is not what split 'train' was made of"):
        repair(shards, images)
    assert contents(shards) == before


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def other_pixels(path):
    data = path.read_bytes()
    path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])


@pytest.mark.parametrize("damage", [zeros, other_pixels])
def test_a_source_that_was_damaged_since_never_replaces_a_shard_or_the_manifest(shards, images, damage):
    damage(images / "cat" / "4.jpg")  # of the same size, which the fingerprint does not see
    for tar in shards.glob("train-*.tar"):
        tar.write_bytes(tar.read_bytes()[:-10240])
    before = contents(shards)
    with pytest.raises(CommandError, match="comes out neither as manifest.json lists it nor as it lies there"):
        repair(shards, images)
    assert contents(shards) == before


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("shard_mb", 0.01, "comes out neither as manifest.json lists it"),
        ("seed", "x", "the manifest's options of a split are damaged: TypeError"),
        ("quality", 1000, "the manifest's options of a split are damaged: ValueError.*--quality"),
        ("split", "other", "has the options of 'other'"),
        ("source_fingerprint", None, "--input is not what split 'train' was made of"),
    ],
)
def test_options_that_were_edited_are_refused(shards, images, name, value, message):
    stale_manifest(shards, lambda split: split["options"].update({name: value}))
    (shards / "train-000001.tar").unlink()
    before = contents(shards)
    with pytest.raises(CommandError, match=message):
        repair(shards, images)
    assert contents(shards) == before


def test_other_library_versions_that_give_other_bytes_are_refused(shards, images):
    shard_set = read_manifest(shards)
    train = shard_set.splits["train"]
    first = dataclasses.replace(train.shards[0], sha256="0" * 64)
    written_with = {**train.written_with, "Pillow": "1.0"}
    shard_set.splits["train"] = dataclasses.replace(train, shards=(first, *train.shards[1:]), written_with=written_with)
    write_manifest(shard_set)
    before = contents(shards)
    with pytest.raises(CommandError, match="comes out with other bytes: .*'Pillow': '1.0'.* Install those versions"):
        repair(shards, images)
    assert contents(shards) == before


def test_the_command_repairs(shards, images, capsys):
    before = contents(shards)
    (shards / "val-000000.tar").unlink()
    where = f"--shards={shards}"
    assert run_command(verify_shards, where, "--workers=1") == 1
    assert run_command(verify_shards, where, "--repair", f"--input={images}", "--workers=1") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 shards, 30 samples: all good"
    assert contents(shards) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input=x"], "a source is named, but not --repair"),
        (["--repair"], "--input is missing"),
        (["--repair", "--source=list", "--input=x.csv"], "'val' was made with --source=folder, received --source=list"),
        (["--repair", "--input=x", "--split=test"], "has no split 'test'"),
        (["--workers=0"], "--workers must be at least 1"),
    ],
)
def test_mistakes_are_one_sentence(shards, arguments, message, capsys):
    (shards / "val-000000.tar").unlink()
    assert run_command(verify_shards, f"--shards={shards}", *arguments) == 1
    assert message in capsys.readouterr().err
