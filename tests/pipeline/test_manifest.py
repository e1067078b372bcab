"""Manifest and index files: round trips, and a clear error for each kind of damage."""

import hashlib
import json

import pytest

from pipeline.manifest import (
    ManifestError,
    Member,
    Shard,
    ShardSet,
    Split,
    load_manifest,
    read_index,
    write_index,
    write_manifest,
)

ROWS = [
    [Member("cls", 512, 1, "00000000.cls"), Member("jpg", 1536, 700, "00000000.jpg")],
    [Member("cls", 3072, 2, "00000001.cls"), Member("png", 4096, 90, "00000001.png")],
]


@pytest.fixture
def shard_set(tmp_path):
    shards = []
    for number, content in enumerate([b"first", b"second"]):
        file, index = f"train-{number:06d}.tar", f"train-{number:06d}.idx"
        (tmp_path / file).write_bytes(content)
        write_index(tmp_path / index, ROWS)
        shards.append(Shard(file, len(content), hashlib.sha256(content).hexdigest(), 2, index))
    split = Split("train", 4, tuple(shards), {"seed": 3, "val_fraction": None})
    shard_set = ShardSet(str(tmp_path), ("cat", "dög"), {"train": split}, {"numpy": "2"})
    write_manifest(shard_set)
    return shard_set


def edit_manifest(root, change):
    content = json.loads((root / "manifest.json").read_text())
    change(content)
    (root / "manifest.json").write_text(json.dumps(content))


def test_a_manifest_reads_back_as_it_was_written(shard_set, tmp_path):
    assert load_manifest(tmp_path) == shard_set


def test_writing_a_manifest_leaves_no_other_file(shard_set, tmp_path):
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix not in (".tar", ".idx")) == ["manifest.json"]


def test_the_only_split_needs_no_name(shard_set):
    assert shard_set.split(None) is shard_set.split("train")


def test_several_splits_need_a_name(shard_set):
    two = ShardSet(shard_set.root, None, {"train": shard_set.splits["train"], "val": Split("val", 0, (), {})})
    with pytest.raises(ManifestError, match=r"2 splits \(train, val\)"):
        two.split(None)


def test_an_unknown_split_is_named_beside_those_that_exist(shard_set):
    with pytest.raises(ManifestError, match="no split 'tset'; its splits are: train"):
        shard_set.split("tset")


def test_the_fingerprint_is_the_hash_of_the_shards_hashes(shard_set):
    hashes = [hashlib.sha256(content).hexdigest() for content in (b"first", b"second")]
    expected = hashlib.sha256(f"{hashes[0]}\n{hashes[1]}\n".encode()).hexdigest()
    assert shard_set.fingerprint("train") == expected


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ManifestError, match="nowhere does not exist"):
        load_manifest(tmp_path / "nowhere")


def test_a_folder_without_a_manifest_is_no_shard_set(tmp_path):
    with pytest.raises(ManifestError, match="has no manifest.json"):
        load_manifest(tmp_path)


def test_a_cut_manifest_is_not_json(shard_set, tmp_path):
    path = tmp_path / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ManifestError, match="not valid JSON"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content.update(format="other"),
            "'keras_mae shard set', received 'other'",
        ),
        (lambda content: content.update(version=2), "has version 2; this software reads version 1"),
        (lambda content: content.pop("classes"), "KeyError"),
        (
            lambda content: content["splits"]["train"].update(samples=5),
            "says 5 samples, but its shards say 4",
        ),
        (
            lambda content: content["splits"]["train"]["shards"][0].update(bytes="5"),
            "expected int, received '5'",
        ),
        (lambda content: content["splits"]["train"]["shards"][0].update(file="../x"), "plain file name"),
        (
            lambda content: content["splits"].update({"a/b": content["splits"]["train"]}),
            "cannot name a split",
        ),
    ],
)
def test_a_wrong_field_is_named(shard_set, tmp_path, change, message):
    edit_manifest(tmp_path, change)
    with pytest.raises(ManifestError, match=message):
        load_manifest(tmp_path)


def test_a_missing_tar_is_named(shard_set, tmp_path):
    (tmp_path / "train-000001.tar").unlink()
    with pytest.raises(ManifestError, match="train-000001.tar is listed in manifest.json but missing"):
        load_manifest(tmp_path)


def test_a_cut_tar_is_named_with_both_sizes(shard_set, tmp_path):
    (tmp_path / "train-000001.tar").write_bytes(b"seco")
    with pytest.raises(ManifestError, match="train-000001.tar has 4 bytes, expected 6"):
        load_manifest(tmp_path)


def test_a_missing_index_is_named(shard_set, tmp_path):
    (tmp_path / "train-000000.idx").unlink()
    with pytest.raises(ManifestError, match="train-000000.idx .* is missing"):
        load_manifest(tmp_path)


def test_an_index_is_written_in_the_format_of_dali(tmp_path):
    # Its version 1.2: https://docs.nvidia.com/deeplearning/dali, fn.readers.webdataset, index files.
    write_index(tmp_path / "a.idx", ROWS)
    assert (tmp_path / "a.idx").read_text() == (
        "v1.2 2\ncls 512 1 00000000.cls jpg 1536 700 00000000.jpg\ncls 3072 2 00000001.cls png 4096 90 00000001.png\n"
    )


def test_an_index_reads_back_what_was_written(tmp_path):
    write_index(tmp_path / "a.idx", ROWS)
    index = read_index(tmp_path / "a.idx", 2)
    assert index.keys == ("00000000", "00000001")
    assert index.extensions == ("jpg", "png")
    columns = (index.image_offset, index.image_size, index.label_offset, index.label_size)
    assert [column.dtype.name for column in columns] == ["int64"] * 4
    assert [column.tolist() for column in columns] == [[1536, 4096], [700, 90], [512, 3072], [1, 2]]


def test_samples_without_labels_and_of_any_width_share_an_index(tmp_path):
    rows = [
        [Member("jpg", 512, 7, "00000000.jpg"), Member("json", 1536, 9, "00000000.json")],
        [Member("cls", 2560, 1, "00000001.cls"), Member("webp", 3584, 8, "00000001.webp")],
        [Member("png", 4608, 6, "00000002.png")],
    ]
    write_index(tmp_path / "a.idx", rows)
    index = read_index(tmp_path / "a.idx", 3)
    assert index.extensions == ("jpg", "webp", "png")
    assert index.image_offset.tolist() == [512, 3584, 4608]
    assert (index.label_offset.tolist(), index.label_size.tolist()) == ([0, 2560, 0], [0, 1, 0])


def test_an_index_of_no_samples_is_empty(tmp_path):
    write_index(tmp_path / "a.idx", [])
    assert read_index(tmp_path / "a.idx", 0).image_offset.shape == (0,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line should be 'v1.2 1', received ''"),
        ("v1.1 1\njpg 512 7 0.jpg\n", "received 'v1.1 1'"),
        ("v1.2 2\njpg 512 7 0.jpg\n", "received 'v1.2 2'"),
        ("v1.2 1\n", "expected 1 samples, received 0"),
        ("v1.2 1\njpg 512 7 0.jp", "cut or edited"),
        ("v1.2 1\njpg 512 7\n", "extension offset size name"),
        ("v1.2 1\njpg 512 x 0.jpg\n", "extension offset size name"),
        ("v1.2 1\ncls 512 1 0.cls\n", "sample 0 needs one image"),
        ("v1.2 1\njpg 512 7 0.jpg png 1536 7 0.png\n", "sample 0 needs one image"),
        ("v1.2 1\ncls 512 1 1.cls jpg 1536 7 0.jpg\n", "should have members '0.EXTENSION', received '1.cls'"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, text, message):
    path = tmp_path / "a.idx"
    path.write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_index(path, 1)


def test_a_missing_index_file_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="a.idx is missing"):
        read_index(tmp_path / "a.idx", 1)
