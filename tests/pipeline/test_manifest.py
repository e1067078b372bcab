"""The manifest: round trips, and a clear error for each kind of damage."""

import hashlib
import json

import pytest

from pipeline.manifest import ManifestError, Shard, ShardSet, Split, load_manifest, write_manifest


@pytest.fixture
def shard_set(tmp_path):
    shards = []
    for number, content in enumerate([b"first", b"second"]):
        file, index = f"train-{number:06d}.tar", f"train-{number:06d}.idx"
        (tmp_path / file).write_bytes(content)
        (tmp_path / index).write_bytes(b"v1.2 2\n")
        shards.append(Shard(file, len(content), hashlib.sha256(content).hexdigest(), 2, index))
    split = Split("train", 4, tuple(shards), {"seed": 3, "val_fraction": None}, {"numpy": "2"})
    shard_set = ShardSet(str(tmp_path), ("cat", "dög"), {"train": split})
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
        (lambda content: content.update(version=True), "has version True"),
        (lambda content: content.update(classes=["cat", "dog", "cat"]), "the class 'cat' is listed twice"),
        (
            lambda content: content["splits"].update(val=content["splits"]["train"]),
            "'train-000000.tar' is listed twice",
        ),
        (lambda content: content["splits"]["train"].update(options=[]), "expected dict, received \\[\\]"),
        (lambda content: content["splits"]["train"].update(samples=-4), "2\\*\\*63 - 1, received -4"),
        *(
            (lambda content, change=change: content["splits"]["train"]["shards"][0].update(change), message)
            for change, message in [
                ({"file": "x.zip"}, "lists 'x.zip', expected a plain file name"),
                ({"file": ".x.tar"}, "lists '.x.tar', expected a plain file name"),
                ({"index": "../a.idx"}, "with the index '../a.idx', expected 'train-000000.idx'"),
                ({"index": "manifest.json"}, "with the index 'manifest.json', expected 'train-000000.idx'"),
                ({"sha256": "0" * 63}, "expected 64 hexadecimal digits"),
                ({"bytes": -1}, "2\\*\\*63 - 1, received -1"),
                ({"samples": 1 << 63}, "2\\*\\*63 - 1, received 9223372036854775808"),
            ]
        ),
    ],
)
def test_a_wrong_field_is_named(shard_set, tmp_path, change, message):
    edit_manifest(tmp_path, change)
    with pytest.raises(ManifestError, match=message):
        load_manifest(tmp_path)


@pytest.mark.parametrize("depth", [900, 100_000])
def test_json_that_is_nested_too_deep_is_refused(tmp_path, depth):
    (tmp_path / "manifest.json").write_text('{"format": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(ManifestError, match="not valid JSON|not a manifest") as error:
        load_manifest(tmp_path)
    assert len(str(error.value)) < 500


def test_long_names_are_cut_in_messages(shard_set, tmp_path):
    edit_manifest(tmp_path, lambda content: content["splits"]["train"]["shards"][0].update(file="x" * 10_000))
    with pytest.raises(ManifestError, match="lists 'xxx") as error:
        load_manifest(tmp_path)
    assert len(str(error.value)) < 500


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
