"""Arrays become shards: what is written, refused, verified, repaired, indexed in place and shown."""

import io
import json
import tarfile

import numpy as np
import pytest
from fixtures.commands import run_command
from fixtures.shard_sets import encode
from PIL import Image

from keras_mae.commandline import CommandError
from pipeline.array_files import ArrayKind
from pipeline.image_files import ImageOptions
from pipeline.manifest import load_manifest
from pipeline.sources import FolderSource, SourceError, WebDatasetSource
from pipeline.writing import ShardTask
from tools import make_shards, reconstruct, show_batch
from tools.array_pictures import as_pictures
from tools.beam_engine import task_from_json, task_to_json
from tools.index_in_place import index_in_place
from tools.inspect_shards import inspect_shards
from tools.repair_shards import repair_shards
from tools.shard_faults import find_faults
from tools.shard_figures import table
from tools.shard_plan import ShardOptions
from tools.sharding import make_shards as make

RANDOM = np.random.default_rng(0)


def save(folder, name, *shape, dtype="uint16"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RANDOM.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    np.save(path, array)
    return array


def shard(folder, output, split="train", **options):
    run = {name: options.pop(name) for name in ("on_error", "log") if name in options}
    return make(FolderSource(folder), output, ShardOptions(split, **options), workers=1, **{"log": str, **run})


def members(output):
    """Bytes of all members of a shard set, by tar and name."""
    found = {}
    for path in sorted(output.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {(path.name, member.name): tar.extractfile(member).read() for member in tar}
    return found


def write_tar(path, *files):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def npy(*shape, dtype="uint16"):
    file = io.BytesIO()
    np.save(file, np.zeros(shape, dtype))
    return file.getvalue()


@pytest.fixture
def arrays(tmp_path):
    """8 arrays of 16 bits and 6 channels in 2 classes."""
    folder = tmp_path / "arrays"
    for number in range(8):
        save(folder, f"{'ab'[number % 2]}/{number}.npy", 10 + number % 2, 12, 6)
    return folder


@pytest.fixture
def shards(arrays, tmp_path):
    shard(arrays, tmp_path / "shards", shard_samples=3)
    return tmp_path / "shards"


def test_arrays_are_stored_bit_for_bit(arrays, shards):
    found = members(shards)
    sources = {}
    for (tar, name), data in found.items():
        if name.endswith(".json"):
            sources[json.loads(data)["source"]] = found[tar, name.replace(".json", ".npy")]
    assert sources == {str(path.relative_to(arrays)): path.read_bytes() for path in arrays.rglob("*.npy")}
    shard_set = load_manifest(shards)
    assert shard_set.classes == ("a", "b") and shard_set.splits["train"].arrays == ArrayKind("uint16", 6)
    assert json.loads((shards / "manifest.json").read_text())["splits"]["train"]["arrays"]["channels"] == 6


def test_the_last_line_says_what_the_arrays_are(arrays, tmp_path):
    lines = []
    shard(arrays, tmp_path / "out", log=lines.append)
    assert "wrote 8 samples (train), arrays, uint16 of 6 channels, 2 classes" in lines[-1]


def test_grey_arrays_have_one_channel(tmp_path):
    save(tmp_path / "in", "0.npy", 5, 6, dtype="uint8")
    assert shard(tmp_path / "in", tmp_path / "out").splits["train"].arrays == ArrayKind("uint8", 1)


def test_arrays_beside_pictures_are_something_else(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encode(np.zeros((4, 4, 3), np.uint8)))
    save(tmp_path / "in", "a.npy", 4, 4)
    lines = []
    shard_set = shard(tmp_path / "in", tmp_path / "out", log=lines.append)
    assert shard_set.splits["train"].samples == 1 and shard_set.splits["train"].arrays is None
    assert "ignored 1 file that is not an image by name: 'a.npy'" in lines


def test_an_array_of_another_kind_is_named_or_left_out(arrays, tmp_path):
    save(arrays, "b/other.npy", 10, 12, 4)
    with pytest.raises(SourceError, match="'b/other.npy' cannot be used: it is an array, uint16 of 4 channels; the im"):
        shard(arrays, tmp_path / "out")
    shard_set = shard(arrays, tmp_path / "skipped", on_error="skip")
    assert shard_set.splits["train"].samples == 8


def test_damaged_arrays_are_named(arrays, tmp_path):
    path = arrays / "b" / "7.npy"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(
        SourceError, match="'b/7.npy' cannot be used: it is cut: it has 1579 bytes of numbers, expected"
    ):
        shard(arrays, tmp_path / "out")


def test_the_first_array_decides_before_anything_is_written(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4), "float32"))
    with pytest.raises(SourceError, match="'a.npy' cannot be used: it has dtype '<f4', expected uint8"):
        shard(tmp_path, tmp_path.parent / "out_of_floats")
    assert not (tmp_path.parent / "out_of_floats").exists()


@pytest.mark.parametrize("option", [{"encoder": "jpeg"}, {"resize_short_side": 4}, {"exif": "apply"}])
def test_arrays_are_not_encoded_anew(arrays, tmp_path, option):
    with pytest.raises(CommandError, match=f"--{next(iter(option))} is for pictures; arrays .* stored as they are"):
        shard(arrays, tmp_path / "out", images=ImageOptions(**option))


def test_splits_of_a_shard_set_are_of_one_kind(shards, tmp_path):
    save(tmp_path / "val", "a/0.npy", 4, 4, 6, dtype="uint8")
    with pytest.raises(CommandError, match="hold arrays, uint16 of 6 channels, and --input holds arrays, uint8 of 6"):
        shard(tmp_path / "val", shards, "val")


def test_tars_of_arrays_are_sharded_anew(shards, tmp_path):
    source = WebDatasetSource(str(shards))
    shard_set = make(source, tmp_path / "again", ShardOptions(), workers=1, log=str)
    assert shard_set.splits["train"].arrays == ArrayKind("uint16", 6)


def test_a_broken_shard_of_arrays_is_found_and_written_again(arrays, shards):
    path = shards / "train-000001.tar"
    before = path.read_bytes()
    path.write_bytes(before[:2000] + bytes(600) + before[2600:])
    assert list(find_faults(load_manifest(shards), deep=True))
    _, left = repair_shards(shards, lambda split: {split: FolderSource(arrays)}, deep=True, log=str)
    assert left == [] and path.read_bytes() == before


def test_deep_verification_knows_what_the_arrays_should_be(shards):
    path = shards / "manifest.json"
    path.write_text(path.read_text().replace('"channels": 6', '"channels": 5'))
    faults = [fault.text for fault in find_faults(load_manifest(shards), deep=True)]
    assert len(faults) == 8
    assert "has an image of another kind: uint16 of 6 channels, expected uint16 of 5 channels" in faults[0]


def test_tars_of_arrays_are_indexed_in_place(tmp_path):
    write_tar(tmp_path / "tars" / "x.tar", ("0.npy", npy(3, 4, 9)), ("1.npy", npy(5, 4, 9)), ("1.seg.npy", npy(5, 4)))
    shard_set = index_in_place(str(tmp_path / "tars"), workers=1, log=str)
    assert shard_set.splits["train"].arrays == load_manifest(tmp_path / "tars").splits["train"].arrays
    assert shard_set.splits["train"].arrays == ArrayKind("uint16", 9)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            ("1.npy", npy(3, 4, 8)),
            "sample '1' is an array, uint16 of 8 channels, and that of the first sample an array",
        ),
        (("1.png", encode(np.zeros((4, 4, 3), np.uint8))), "sample '1' is a picture, and that of the first sample an"),
        (("1.npy", npy(3, 4, dtype="float64")), "'1.npy' cannot be read: it has dtype '<f8'"),
        (("1.npy", npy(3, 4, 9)[:-1]), "'1.npy' cannot be read: it is cut"),
    ],
)
def test_tars_with_images_of_two_kinds_are_not_indexed(tmp_path, other, message):
    write_tar(tmp_path / "tars" / "x.tar", ("0.npy", npy(3, 4, 9)), other)
    with pytest.raises(SourceError, match=message):
        index_in_place(str(tmp_path / "tars"), workers=1, log=str)


def test_a_picture_comes_before_an_array(tmp_path):
    picture = encode(np.zeros((4, 4, 3), np.uint8))
    write_tar(tmp_path / "tars" / "x.tar", ("0.left.png", picture), ("0.npy", npy(3, 4)))
    source = WebDatasetSource(str(tmp_path / "tars"))
    source.scan()
    (item,) = source.items([0])
    assert item.image.size == len(picture) and [extension for extension, _ in item.members] == ["npy"]


def test_a_task_file_gives_back_the_kind():
    task = ShardTask("/out", "train", 0, 0, [], arrays=ArrayKind("uint16", 13))
    assert task_from_json(task_to_json(task)) == task


def test_inspection_counts_and_draws_arrays(shards, tmp_path):
    found = inspect_shards(shards, output=tmp_path / "inspection.png")
    split = found.splits["train"]
    assert not split.damaged and {image.mode for image in split.opened} == {"uint16 of 6 channels"}
    assert sorted(set(split.heights)) == [10, 11] and set(split.widths) == {12}
    assert "uint16 of 6 channels: 8" in table(found) and "npy: 8" in table(found)
    assert len(split.thumbnails) == 8 and split.thumbnails[0].pixels.shape[2] == 3
    with Image.open(tmp_path / "inspection.png") as figure:
        assert figure.format == "PNG"


def test_show_batch_draws_arrays(shards, tmp_path, capsys):
    flags = ["--view=pretrain", "--image_size=8", "--channels=6", "--mask_ratio=.5", "--patch_size=4", "--repeats=2"]
    status = run_command(
        show_batch, f"--data={shards}", f"--output={tmp_path / 'batch.png'}", "--batch_size=4", "--count=2", *flags
    )
    assert status == 0, capsys.readouterr().err
    with Image.open(tmp_path / "batch.png") as figure:
        assert figure.format == "PNG"


def test_pictures_show_the_first_channels_and_make_the_brightest_of_16_bits_white():
    many = RANDOM.integers(0, 256, (2, 3, 4, 7), dtype=np.uint8)
    np.testing.assert_array_equal(as_pictures(many), many[..., :3])
    np.testing.assert_array_equal(as_pictures(many[..., :2]), many[..., :1])
    wide = np.array([0, 1000, 2000, 4000], np.uint16).reshape(2, 2, 1)
    np.testing.assert_array_equal(as_pictures(wide).ravel(), [0, 64, 128, 255])
    assert as_pictures(np.zeros((2, 2, 3), np.uint16)).max() == 0


def test_reconstruct_reads_array_files(tmp_path):
    arrays = [save(tmp_path, f"{number}.npy", 8, 12, 5) for number in range(2)]
    paths = [str(tmp_path / f"{number}.npy") for number in range(2)]
    found = reconstruct.read_images(paths, (8, 12), 5, 8)
    np.testing.assert_array_equal(found, arrays)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.png", encode(np.zeros((8, 8, 3), np.uint8)), "takes images of 5 channels, which only arrays"),
        ("a.npy", npy(8, 8, 4), "takes images of 5 channels. Received: .*a.npy, uint16 of 4 channels"),
        ("a.npy", npy(8, 8, 5, dtype="float32"), "a.npy cannot be used: it has dtype '<f4'"),
        ("a.npy", npy(8, 8, 5, dtype="uint8"), "must be of one type. Received: .*a.npy of uint8, others of uint16"),
    ],
)
def test_reconstruct_refuses_other_files_in_one_sentence(tmp_path, name, data, message):
    save(tmp_path, "good.npy", 8, 8, 5)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        reconstruct.read_images([str(tmp_path / "good.npy"), str(tmp_path / name)], (8, 8), 5, 8)


def test_the_command_makes_shards_of_arrays(arrays, tmp_path, capsys):
    assert run_command(make_shards, f"--input={arrays}", f"--output={tmp_path / 'out'}", "--workers=1") == 0
    assert "uint16 of 6 channels" in capsys.readouterr().out
