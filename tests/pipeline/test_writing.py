"""Tars: the bytes that webdataset's own writer gives, sizes known beforehand, whole or absent."""

import dataclasses
import errno
import hashlib
import json
import os
import tarfile
import threading

import numpy as np
import pytest
import webdataset
from fixtures.shard_sets import encode, items_of

from pipeline.atomic import open_atomically
from pipeline.image_files import ImageOptions
from pipeline.locations import Location, SourceError, SourceUnavailable, read_location
from pipeline.shard_index import read_index
from pipeline.sources.base import sample_tar_bytes
from pipeline.writing import ShardTask, tar_header, write_shard


def encoded(kind):
    return encode(np.full((4, 5, 3), (200, 30, 40), np.uint8), kind)


@pytest.fixture
def items(tmp_path_factory):
    """Three samples of class 0, 12 and 1 in the three formats, in files with misleading or no suffixes."""
    return items_of(tmp_path_factory.mktemp("source"), [encoded(kind) for kind in ("PNG", "JPEG", "WEBP")], [0, 12, 1])


def bytes_of(items):
    return [read_location(item.image) for item in items]


def test_a_tar_equals_that_of_webdatasets_own_writer(items, tmp_path):
    write_shard(ShardTask(str(tmp_path), "train", 0, 41, items))
    with webdataset.TarWriter(str(tmp_path / "expected.tar"), encoder=False, mtime=0, user="", group="") as writer:
        for number, (item, extension) in enumerate(zip(items, ("png", "jpg", "webp"), strict=True), 41):
            writer.write(
                {
                    "__key__": f"{number:08d}",
                    extension: read_location(item.image),
                    "cls": str(item.label).encode(),
                    "json": json.dumps({"source": item.name}).encode(),
                }
            )
    assert (tmp_path / "train-000000.tar").read_bytes() == (tmp_path / "expected.tar").read_bytes()


@pytest.mark.parametrize("name", ["00000000.jpg", "x" * 100, "x" * 101 + "/y.jpg", "ü.seg.png", "a/b.json"])
@pytest.mark.parametrize("size", [0, 1, 117_003, 8**11 - 1])
def test_a_header_equals_tarfiles(name, size):
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_index_offsets_slice_exactly_the_image_and_the_label(items, tmp_path):
    shard = write_shard(ShardTask(str(tmp_path), "train", 7, 0, items)).shard
    assert (shard.file, shard.index) == ("train-000007.tar", "train-000007.idx")
    data = (tmp_path / shard.file).read_bytes()
    index = read_index(tmp_path / shard.index, 3)
    images = [data[o : o + n] for o, n in zip(index.image_offset, index.image_size, strict=True)]
    labels = [data[o : o + n] for o, n in zip(index.label_offset, index.label_size, strict=True)]
    assert images == bytes_of(items)
    assert labels == [b"0", b"12", b"1"]
    assert index.extensions == ("png", "jpg", "webp")
    assert index.keys == ("00000000", "00000001", "00000002")


def test_the_manifest_entry_says_what_the_file_is(items, tmp_path):
    shard = write_shard(ShardTask(str(tmp_path), "train", 0, 0, items)).shard
    data = (tmp_path / shard.file).read_bytes()
    assert (shard.bytes, shard.sha256, shard.samples) == (len(data), hashlib.sha256(data).hexdigest(), 3)


def test_a_shard_of_many_writes_has_the_size_and_hash_of_its_file(tmp_path):
    (tmp_path / "source").mkdir()
    image = encode(np.random.default_rng(0).integers(0, 255, (700, 700, 3), dtype=np.uint8))  # 1.5 MB
    items = items_of(tmp_path / "source", [image] * 3)
    shard = write_shard(ShardTask(str(tmp_path), "train", 0, 0, items)).shard
    data = (tmp_path / shard.file).read_bytes()
    assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert [data[o : o + len(image)] for o in read_index(tmp_path / shard.index, 3).image_offset] == [image] * 3


def test_samples_without_a_class_have_no_cls_member(items, tmp_path):
    unlabelled = [dataclasses.replace(item, label=None) for item in items]
    write_shard(ShardTask(str(tmp_path), "train", 0, 0, unlabelled))
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        assert not [name for name in tar.getnames() if name.endswith("cls")]
    assert read_index(tmp_path / "train-000000.idx", 3).label_size.tolist() == [0, 0, 0]


def test_further_members_and_columns_are_carried(items, tmp_path):
    label_map = items[0].image
    item = dataclasses.replace(items[1], members=(("seg.png", label_map),), columns={"boxes": [[1, 2, 3, 4]]})
    write_shard(ShardTask(str(tmp_path), "train", 0, 0, [item]))
    sample = next(iter(webdataset.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False)))
    assert sample["seg.png"] == read_location(label_map)
    assert json.loads(sample["json"]) == {"source": "1", "boxes": [[1, 2, 3, 4]]}
    assert read_index(tmp_path / "train-000000.idx", 1).extensions == ("jpg",)


def test_a_further_member_cannot_take_the_name_of_the_image(items, tmp_path):
    item = dataclasses.replace(items[0], members=(("png", items[0].image),))
    with pytest.raises(SourceError, match="'0' has a further member 'png', which is the name of its image"):
        write_shard(ShardTask(str(tmp_path), "train", 0, 0, [item]))


def test_headers_hold_no_time_owner_or_name_of_the_machine(items, tmp_path):
    write_shard(ShardTask(str(tmp_path), "train", 0, 0, items))
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        facts = {(info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) for info in tar}
    assert facts == {(0, 0, 0, "", "", 0o444)}


def test_a_bad_image_is_named_and_leaves_no_file(tmp_path):
    (tmp_path / "source").mkdir()
    items = items_of(tmp_path / "source", [encoded("JPEG"), b"no image"])
    (tmp_path / "out").mkdir()
    with pytest.raises(SourceError, match="'1' cannot be used: it is not an image"):
        write_shard(ShardTask(str(tmp_path / "out"), "train", 0, 0, items))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_skipped_sample_is_listed_and_leaves_its_number_unused(items, tmp_path):
    (tmp_path / "bad").write_bytes(b"no image")
    bad = dataclasses.replace(items[1], image=Location(str(tmp_path / "bad"), 0, 8))
    written = write_shard(ShardTask(str(tmp_path), "train", 0, 0, [items[0], bad, items[2]], skip_damaged=True))
    [(name, reason)] = written.skipped
    assert name == "1" and reason.startswith("'1' cannot be used: it is not an image")
    assert written.shard.samples == 2
    assert read_index(tmp_path / "train-000000.idx", 2).keys == ("00000000", "00000002")


def test_a_file_that_vanished_or_changed_is_never_skipped(items, tmp_path):
    (tmp_path / "grown").write_bytes(b"123456")
    for name, message in (("gone", "does not exist"), ("grown", "has changed: expected 5 bytes at 0, read 6")):
        lost = dataclasses.replace(items[1], image=Location(str(tmp_path / name), 0, 5))
        with pytest.raises(SourceUnavailable, match=f"{name} {message}; the input changed while shards were made"):
            write_shard(ShardTask(str(tmp_path), "train", 0, 0, [items[0], lost], skip_damaged=True))
    assert not list(tmp_path.glob("train*"))


def test_the_plan_knows_the_size_of_every_tar(items, tmp_path):
    expected = sum(sample_tar_bytes(len(read_location(i.image)), len(i.json_member()), True) for i in items)
    write_shard(ShardTask(str(tmp_path), "train", 0, 0, items))
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        assert tar.getmembers()[-1].offset_data + 512 == expected  # the last member, json, fits a block


def test_an_error_of_the_disk_while_a_large_file_is_written_is_raised(tmp_path, monkeypatch):
    def fail(descriptor):
        failed.set()
        raise OSError(errno.EIO, "Input/output error")

    failed = threading.Event()
    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="Input/output error"), open_atomically(tmp_path / "a", large=True) as file:
        file.write(bytes(10_000_000))
        assert failed.wait(10)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), open_atomically(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_a_label_map_must_not_lose_its_image_by_resizing(items, tmp_path):
    with_map = dataclasses.replace(items[1], members=(("seg.png", items[0].image), ("txt", items[0].image)))
    task = ShardTask(str(tmp_path), "train", 0, 0, [with_map], ImageOptions(resize_short_side=2))
    with pytest.raises(SourceError, match="'1' has a further member 'seg.png' that would not fit its image any more"):
        write_shard(task)
    captioned = dataclasses.replace(items[1], members=(("txt", items[0].image),))
    assert write_shard(dataclasses.replace(task, items=[captioned])).notes == {"resized": 1, "reencoded": 1}
