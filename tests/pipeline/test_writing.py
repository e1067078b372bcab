"""Tars: the bytes that webdataset's own writer gives, sizes known beforehand, whole or absent."""

import io
import json
import tarfile

import pytest
import webdataset
from PIL import Image

from pipeline.atomic import open_atomically
from pipeline.manifest import read_index
from pipeline.sources import Item, SourceError
from pipeline.writing import assign_to_shards, image_extension, write_shard


class Images:
    """A source in memory."""

    name = "memory"

    def __init__(self, contents):
        self.contents = contents

    def items(self, labels):
        return [Item(path, len(data), label) for (path, data), label in zip(self.contents.items(), labels, strict=True)]

    def read(self, item):
        return self.contents[item.path]


def encode(format, size=(5, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 40)).save(file, format=format)
    return file.getvalue()


@pytest.fixture
def source():
    return Images({"cat/a.JPEG": encode("PNG"), "dog/b.jpg": encode("JPEG"), "dog/ü.webp": encode("WEBP")})


def test_a_tar_equals_that_of_webdatasets_own_writer(source, tmp_path):
    items = source.items([0, 1, 1])
    write_shard(tmp_path, "train", 0, 41, items, source)
    with webdataset.TarWriter(str(tmp_path / "expected.tar"), encoder=False, mtime=0, user="", group="") as writer:
        for number, (item, extension) in enumerate(zip(items, ("png", "jpg", "webp"), strict=True), 41):
            writer.write(
                {
                    "__key__": f"{number:08d}",
                    extension: source.read(item),
                    "cls": str(item.label).encode(),
                    "json": json.dumps({"source": item.path}).encode(),
                }
            )
    assert (tmp_path / "train-000000.tar").read_bytes() == (tmp_path / "expected.tar").read_bytes()


def test_index_offsets_slice_exactly_the_image_and_the_label(source, tmp_path):
    shard = write_shard(tmp_path, "train", 7, 0, source.items([0, 12, 1]), source)
    assert (shard.file, shard.index) == ("train-000007.tar", "train-000007.idx")
    data = (tmp_path / shard.file).read_bytes()
    index = read_index(tmp_path / shard.index, 3)
    images = [data[o : o + n] for o, n in zip(index.image_offset, index.image_size, strict=True)]
    labels = [data[o : o + n] for o, n in zip(index.label_offset, index.label_size, strict=True)]
    assert images == list(source.contents.values())
    assert labels == [b"0", b"12", b"1"]
    assert index.extensions == ("png", "jpg", "webp")
    assert index.keys == ("00000000", "00000001", "00000002")


def test_samples_without_a_class_have_no_cls_member(source, tmp_path):
    write_shard(tmp_path, "train", 0, 0, source.items([None] * 3), source)
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        assert not [name for name in tar.getnames() if name.endswith("cls")]
    assert read_index(tmp_path / "train-000000.idx", 3).label_size.tolist() == [0, 0, 0]


def test_headers_hold_no_time_owner_or_name_of_the_machine(source, tmp_path):
    write_shard(tmp_path, "train", 0, 0, source.items([0, 0, 0]), source)
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        facts = {(info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) for info in tar}
    assert facts == {(0, 0, 0, "", "", 0o444)}


@pytest.mark.parametrize(("format", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_the_extension_follows_the_contents(format, extension):
    assert image_extension(encode(format)) == extension


def test_a_jpeg_with_several_pictures_is_a_jpeg():
    file = io.BytesIO()
    first, second = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "red")
    first.save(file, format="MPO", save_all=True, append_images=[second])
    assert image_extension(file.getvalue()) == "jpg"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"<html>not found</html>", "it is not an image"),
        (encode("GIF"), "it is a GIF image"),
        (encode("PNG")[:12], "it is not an image|its header is damaged"),
    ],
)
def test_what_is_not_an_image_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        image_extension(data)


def test_a_bad_image_is_named_and_leaves_no_file(tmp_path):
    source = Images({"cat/a.jpg": encode("JPEG"), "cat/broken.jpg": b"no image"})
    with pytest.raises(SourceError, match="'cat/broken.jpg' cannot be used: it is not an image"):
        write_shard(tmp_path, "train", 0, 0, source.items([0, 0]), source)
    assert list(tmp_path.iterdir()) == []


def test_shards_fit_the_target_and_cannot_take_one_sample_more(tmp_path):
    image = encode("JPEG", (20, 20))
    source = Images({f"cat/{i}.jpg": image + bytes(700 * (i % 5)) for i in range(40)})
    items, target = source.items([0] * 40), 40_960
    shards = assign_to_shards(items, target)
    assert [number for shard in shards for number in shard] == list(range(40))
    for number, shard in enumerate(shards):
        written = write_shard(tmp_path, "train", number, 0, items[shard.start : shard.stop], source)
        assert written.bytes == (tmp_path / written.file).stat().st_size <= target
        if shard.stop < len(items):
            larger = write_shard(tmp_path, "larger", number, 0, items[shard.start : shard.stop + 1], source)
            assert larger.bytes > target


def test_an_image_larger_than_the_target_has_a_shard_of_its_own():
    items = [Item(f"{i}.jpg", size, None) for i, size in enumerate([10, 99_999, 10])]
    assert assign_to_shards(items, 20_480) == [range(0, 1), range(1, 2), range(2, 3)]


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), open_atomically(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]
