"""verify_shards finds each kind of damage and names the file."""

import dataclasses
import errno
import hashlib
import io
import os

import numpy as np
import pytest
from fixtures.shard_sets import encode, write_shard_set

from pipeline.manifest import ManifestError, load_manifest, write_manifest
from pipeline.shard_index import read_index
from pipeline.sources import FolderSource
from tools.shard_faults import find_faults
from tools.shard_plan import ShardOptions
from tools.sharding import make_shards
from tools.verify_shards import verify_shards


@pytest.fixture
def shards(images, tmp_path):
    make_shards(FolderSource(images), tmp_path / "out", ShardOptions(shard_mb=0.07), workers=1, log=str)
    return tmp_path / "out"


def change_bytes(path, old, new):
    data = path.read_bytes()
    assert data.count(old) >= 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new, 1))


def update_hashes(root):
    # Makes the manifest agree with the tars as they are now.
    shard_set = load_manifest(root)
    for name, split in shard_set.splits.items():
        changed = tuple(
            dataclasses.replace(shard, sha256=hashlib.sha256((root / shard.file).read_bytes()).hexdigest())
            for shard in split.shards
        )
        shard_set.splits[name] = dataclasses.replace(split, shards=changed)
    write_manifest(shard_set)


def output_of(shards, capsys):
    return verify_shards(shards), capsys.readouterr().out.splitlines()


def test_an_intact_shard_set_is_all_good(shards, capsys):
    assert output_of(shards, capsys) == (0, ["2 shards, 30 samples: all good"])


def test_a_cut_tar_is_one_fault(shards, capsys):
    tar = shards / "train-000001.tar"
    size = tar.stat().st_size
    tar.write_bytes(tar.read_bytes()[:-10240])
    place = f"it is cut after byte {size - 10240}: the two empty blocks that end a tar are missing"
    expected = [f"train-000001.tar has {size - 10240} bytes, expected {size}; {place}", "1 fault"]
    assert output_of(shards, capsys) == (1, expected)


def test_a_flipped_byte_is_found(shards, capsys):
    change_bytes(shards / "train-000000.tar", b'"source"', b'"sourcf"')
    faults, lines = output_of(shards, capsys)
    assert faults == 1
    assert lines[0].startswith("train-000000.tar: its contents have changed: sha256 is ")


def test_missing_files_are_found(shards, capsys):
    (shards / "train-000000.tar").unlink()
    (shards / "train-000001.idx").unlink()
    faults, lines = output_of(shards, capsys)
    assert faults == 2
    assert "train-000000.tar is listed in manifest.json but missing" in lines[0]
    assert "train-000001.idx (index of train-000001.tar) is missing" in lines[1]


def test_an_index_of_another_tar_is_found(shards, capsys):
    change_bytes(shards / "train-000000.idx", b" json ", b" jsom ")
    faults, lines = output_of(shards, capsys)
    assert faults == 1
    assert lines[0].startswith("train-000000.idx: differs from the tar at line 2: ")


def test_a_cut_index_is_found(shards, capsys):
    path = shards / "train-000000.idx"
    path.write_bytes(path.read_bytes()[: path.read_bytes().rindex(b"\n") - 5])
    assert output_of(shards, capsys)[0] == 1
    path.write_bytes(b"")
    assert output_of(shards, capsys)[0] == 1


def test_a_label_outside_the_classes_is_found(shards, capsys):
    tar = shards / "train-000000.tar"
    offset = int((shards / "train-000000.idx").read_text().split("\n")[1].split()[1])  # the first sample's cls
    data = bytearray(tar.read_bytes())
    data[offset : offset + 1] = b"7"
    tar.write_bytes(data)
    update_hashes(shards)
    expected = "train-000000.tar: sample 00000000 has label b'7', expected an integer from 0 to 2"
    assert output_of(shards, capsys) == (1, [expected, "1 fault"])


def test_samples_that_a_damaged_header_hides_are_found(shards, capsys):
    change_bytes(shards / "train-000000.tar", b"00000003.cls", b"\xff" * 12)
    update_hashes(shards)
    faults, lines = output_of(shards, capsys)
    assert faults >= 2
    assert lines[0].startswith("train-000000.tar has a damaged header at byte ")
    assert lines[1].startswith("train-000000.tar: holds 3 samples, expected ")


def test_files_that_no_manifest_lists_are_found(shards, capsys):
    (shards / "train-000002.tar").write_bytes(b"")
    (shards / ".val.unfinished").mkdir()
    faults, lines = output_of(shards, capsys)
    assert faults == 2
    assert lines[0].startswith(".val.unfinished: make_shards is at work, or was killed")
    assert lines[1].startswith("train-000002.tar: manifest.json does not list it")


def test_a_folder_without_a_manifest_is_an_error(tmp_path):
    with pytest.raises(ManifestError, match="has no manifest.json"):
        verify_shards(tmp_path)


def test_a_sidecar_that_differs_or_is_missing_is_found(shards, capsys):
    (shards / "_info.json").write_text("{}")
    (shards / "train.wids.json").unlink()
    assert output_of(shards, capsys) == (
        2,
        ["train.wids.json is missing", "_info.json: differs from manifest.json", "2 faults"],
    )


@pytest.mark.parametrize("name", ["train-000000.tar", "train-000000.idx", "_info.json"])
def test_a_file_that_cannot_be_read_is_one_fault_among_others(shards, name, monkeypatch, capsys):
    (shards / "train-000001.tar").unlink()
    opened = os.open

    def refuse(path, *arguments, **options):
        if os.fspath(path).endswith(name):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opened(path, *arguments, **options)

    monkeypatch.setattr("os.open", refuse)  # permissions do not bind root
    monkeypatch.setattr("builtins.open", lambda path, mode="r": io.FileIO(path, mode, opener=refuse))
    faults, lines = output_of(shards, capsys)
    assert faults == 2
    assert any(line.startswith(f"{name}: ") and line.endswith("cannot be read: Permission denied") for line in lines)
    assert any(line.startswith("train-000001.tar is listed in manifest.json but missing") for line in lines)


def test_a_tar_that_vanishes_meanwhile_is_one_fault(shards, monkeypatch, capsys):
    monkeypatch.setattr("tools.shard_faults.sha256_of", lambda path: os.unlink(path) or "")
    faults, lines = output_of(shards, capsys)
    assert faults == 2
    assert [line.endswith(f"train-00000{i}.tar does not exist") for i, line in enumerate(lines[:2])] == [True, True]


def test_a_label_of_thousands_of_digits_is_a_fault(tmp_path, capsys):
    write_shard_set(
        tmp_path, [encode(np.zeros((2, 2), np.uint8))], shard_samples=[1], labels=["9" * 5000], classes=("a",)
    )
    faults, lines = output_of(tmp_path, capsys)
    expected = "train-000000.tar: sample 00000000 has label b'99999999999999999999', expected an integer from 0 to 0"
    assert (faults, lines[0]) == (3, expected)  # the sidecars are missing, too


def test_unlisted_shards_of_any_number_are_known_by_their_split(shards):
    for name in ("train-1234567.tar", "val-000000.tar", "train-1.tar"):
        (shards / name).write_bytes(b"")
    splits = {fault.text.split(":")[0]: fault.split for fault in find_faults(load_manifest(shards))}
    assert splits == {"train-1234567.tar": "train", "val-000000.tar": None, "train-1.tar": None}


def test_only_deep_finds_damaged_pixels(shards, capsys):
    index = read_index(shards / "train-000000.idx", load_manifest(shards).splits["train"].shards[0].samples)
    png = index.extensions.index("png")
    tar = shards / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    data[index.image_offset[png] + 45] ^= 255
    tar.write_bytes(data)
    update_hashes(shards)
    assert output_of(shards, capsys) == (0, ["2 shards, 30 samples: all good"])
    assert verify_shards(shards, deep=True) == 1
    expected = f"train-000000.tar: sample {index.keys[png]} has a damaged image: it "
    assert capsys.readouterr().out.startswith(expected)


def test_several_processes_find_the_same(shards, capsys):
    for number in (0, 1):
        change_bytes(shards / f"train-00000{number}.tar", b'"source"', b'"sourcf"')
    alone = output_of(shards, capsys)
    assert (verify_shards(shards, workers=2), capsys.readouterr().out.splitlines()) == alone


def test_one_split_can_be_looked_at_alone(shards, images, capsys):
    make_shards(FolderSource(images), shards, ShardOptions("val"), workers=1, log=str)
    (shards / "val-000000.tar").unlink()
    assert verify_shards(shards, splits=["train"]) == 0
    assert verify_shards(shards, splits=["val"]) == 1
    with pytest.raises(ManifestError, match="has no split 'test'"):
        verify_shards(shards, splits=["test"])
