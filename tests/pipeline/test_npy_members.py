"""Arrays as images: what of a `.npy` file is taken, the wide resize, and batches of both engines. Expected pixels come
from numpy and from Pillow's mode "F"."""

import dataclasses
import io
import pickle
import re
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from fixtures.shard_sets import encode, items_of, write_shard_set
from PIL import Image

import pipeline
from pipeline.array_files import MAX_NARROW_CHANNELS, ArrayKind, array_kind, read_array, read_array_header
from pipeline.augment import ColorJitter
from pipeline.crop_resize import TILE
from pipeline.crop_resize_wide import resize_wide
from pipeline.decode import decode_image
from pipeline.graph_arrays import decode_array
from pipeline.host_decode import DecodeError
from pipeline.host_decode import decode_image as decode_on_host
from pipeline.host_engine import batches
from pipeline.load_options import LoadOptions
from pipeline.manifest import ManifestError, ShardSet, Split, load_manifest, manifest_bytes, write_manifest
from pipeline.stats import CorruptSampleError
from pipeline.views import resize_bicubic
from pipeline.writing import ShardTask, write_shard

RANDOM = np.random.default_rng(0)
OPTIONS = {"batch_size": 4, "image_size": (6, 8), "channels": 5}


def npy(array, version=None, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version, **options)
    return file.getvalue()


def pixels(*shape, dtype="uint16"):
    return RANDOM.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def with_header(text, data):
    header = text.encode() + b" " * (-(10 + len(text) + 1) % 16) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def write_arrays(folder, arrays, kind, shard_samples):
    """A shard set of encoded arrays, as `make_shards` writes it."""
    source = folder / "source"
    source.mkdir()
    items, shards, start = items_of(source, arrays, [number % 2 for number in range(len(arrays))]), [], 0
    for number, count in enumerate(shard_samples):
        task = ShardTask(str(folder), "train", number, start, items[start : start + count], arrays=kind)
        shards.append(write_shard(task).shard)
        start += count
    split = Split("train", len(arrays), tuple(shards), {}, arrays=kind)
    write_manifest(ShardSet(str(folder), ("even", "odd"), {"train": split}))
    return load_manifest(folder)


@pytest.fixture(scope="module")
def images():
    """10 images of 5 channels and 16 bits, of different sizes."""
    return [pixels(9 + number % 3, 12, 5) for number in range(10)]


@pytest.fixture(scope="module")
def wide_set(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    return write_arrays(folder, [npy(image) for image in images], ArrayKind("uint16", 5), [4, 6])


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (2, 5, 13)])
def test_what_numpy_writes_is_read_bit_for_bit(shape, dtype, version):
    array = pixels(*shape, dtype=dtype)
    encoded, expected = npy(array, version), array.reshape(*shape[:2], -1)
    for found in (read_array(encoded), decode_array(tf.constant(encoded), expected.shape[2], dtype).numpy()):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '<u1', 'fortran_order': False, 'shape': (2, 3), }",
        "{'shape': (2, 3, 1), 'fortran_order': False, 'descr': '|u1'}",
        '{"descr":"|u1","fortran_order":False,"shape":(2,3)}',
    ],
)
def test_headers_of_other_writers_are_read(text):
    encoded = with_header(text, bytes(range(6)))
    expected = np.arange(6).reshape(2, 3, 1)
    np.testing.assert_array_equal(read_array(encoded), expected)
    np.testing.assert_array_equal(decode_array(tf.constant(encoded), 1, "uint8"), expected)


GOOD = npy(pixels(2, 3, 4))


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (npy(np.array([[{}]]), allow_pickle=True), "Python objects (dtype '|O'), which are never read"),
        (npy(np.zeros((2, 3), "float32")), "dtype '<f4', expected uint8 ('|u1') or little-endian uint16 ('<u2')"),
        (npy(np.zeros((2, 3), "int16")), "dtype '<i2', expected"),
        (npy(np.zeros((2, 3), ">u2")), "dtype '>u2', expected uint8 ('|u1') or little-endian uint16 ('<u2'); save"),
        (npy(np.zeros((2, 3), [("a", "u1")])), "tells no plain type"),
        (npy(np.asfortranarray(pixels(2, 3))), "not in C order; save numpy.ascontiguousarray(array)"),
        (npy(pixels(6)), "no shape of an image; expected (H, W) or (H, W, C)"),
        (npy(pixels(1, 2, 3, 4)), "no shape of an image"),
        (npy(pixels(2, 0, 3)), "no shape of an image"),
        (GOOD[:-1], "is cut: it has 47 bytes of numbers, expected 48 for uint16 (2, 3, 4)"),
        (GOOD + b"\0", "has bytes after its end: 49 bytes of numbers, expected 48"),
        (GOOD[:40], "cut: it ends after 40 bytes, in its header"),
        (GOOD[:7], "in its header"),
        (GOOD[:6] + b"\x09" + GOOD[7:], "header is damaged (version 9"),
        (with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (99999, 99999)}", b""), "too large"),
        (encode(pixels(4, 4, dtype="uint8")), "not an array"),
    ],
)
def test_other_arrays_are_refused_in_one_sentence(encoded, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_array_header(encoded)
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_array(tf.constant(encoded), 4, "uint16")
    with pytest.raises(DecodeError, match=re.escape(message)):
        decode_on_host(encoded, 4, "uint16")


def test_nothing_is_unpickled():
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("it was unpickled",))

    array = np.empty((1, 1), object)
    array[0, 0] = Trap()
    with pytest.raises(ValueError, match="Python objects"):
        read_array(npy(array, allow_pickle=True))
    trap = with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1)}", pickle.dumps(Trap())[:1])
    assert read_array(trap).shape == (1, 1, 1)


def test_numbers_that_lie_between_words_are_read():
    encoded = b"." + npy(pixels(2, 3))
    np.testing.assert_array_equal(read_array(memoryview(encoded)[1:]), read_array(encoded[1:]))


def pillow(image, size, box):
    top, left, height, width = box
    crop = image[top : top + height, left : left + width].astype(np.float32)
    channels = [
        np.asarray(Image.fromarray(channel).resize(size[::-1], Image.Resampling.BICUBIC))
        for channel in np.moveaxis(crop, 2, 0)
    ]
    return np.floor(np.clip(np.stack(channels, axis=2), 0, 65535) + 0.5)


@pytest.mark.parametrize(
    ("size", "box"),
    [((12, 10), (0, 0, 40, 30)), ((50, 37), (3, 5, 20, 11)), ((7, 60), (1, 0, 39, 29)), ((40, 30), (0, 0, 40, 30))],
)
def test_the_wide_resize_is_that_of_pillow_in_floating_point(size, box):
    image = pixels(40, 30, 2)
    image[::7] = 0  # sharp edges, at which the filter overshoots
    image[3::7] = 65535
    found = resize_wide(image, size, box=box)
    assert found.dtype == np.uint16 and np.abs(found - pillow(image, size, box)).max() <= 1
    np.testing.assert_array_equal(resize_wide(image, size, box=box, flip=True), found[:, ::-1])


def test_the_graph_resizes_wide_images_alike():
    image = pixels(40, 30, 2)
    found = resize_bicubic(image, (13, 22)).numpy()
    assert found.dtype == np.uint16 and np.abs(found.astype(int) - resize_wide(image, (13, 22))).max() <= 1


def test_what_does_not_fit_a_tile_is_resized_as_wide_images_are():
    assert MAX_NARROW_CHANNELS == TILE


@pytest.mark.parametrize("view", [pytest.param("train", marks=pytest.mark.slow), "eval"])
def test_both_engines_give_the_same_batches_of_16_bits(wide_set, view):
    host, graph = (
        list(pipeline.load(wide_set, view=view, engine=engine, **OPTIONS).take(3).as_numpy_iterator())
        for engine in ("host", "graph")
    )
    for ours, other in zip(host, graph, strict=True):
        assert ours[0]["image"].dtype == other[0]["image"].dtype == np.uint16
        assert ours[0]["image"].shape == (4, 6, 8, 5)
        assert np.abs(ours[0]["image"].astype(int) - other[0]["image"]).max() <= 1
        np.testing.assert_array_equal(ours[0]["index"], other[0]["index"])
        np.testing.assert_array_equal(ours[1], other[1])
    assert np.concatenate([batch[0]["image"] for batch in host]).max() > 255


def test_an_image_of_the_size_that_is_asked_for_stays_as_it_is(images, wide_set):
    dataset = pipeline.load(wide_set, view="eval", batch_size=10, image_size=(9, 12), resize_size=9, channels=5)
    found = next(dataset.as_numpy_iterator())[0]["image"]
    for number in (0, 3, 6, 9):
        np.testing.assert_array_equal(found[number], images[number])


def test_arrays_of_rgb_give_the_batches_of_a_png(tmp_path):
    images = [pixels(10, 11, 3, dtype="uint8") for _ in range(4)]
    (tmp_path / "arrays").mkdir()
    (tmp_path / "pngs").mkdir()
    arrays = write_arrays(tmp_path / "arrays", [npy(image) for image in images], ArrayKind("uint8", 3), [4])
    pngs = write_shard_set(tmp_path / "pngs", [encode(image) for image in images], shard_samples=[4])
    of_arrays, of_pngs = (
        next(pipeline.load(which, view="pretrain", batch_size=4, image_size=6).as_numpy_iterator())
        for which in (arrays, pngs)
    )
    np.testing.assert_array_equal(of_arrays["image"], of_pngs["image"])
    encoded = tf.constant(npy(images[0]))
    np.testing.assert_array_equal(decode_image(encoded, 3), images[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 3}, "`channels` must be 5. Received: 3; split 'train' of .* holds arrays, uint16 of 5 channels"),
        (
            {"rand_augment": "rand-m9-inc1"},
            "`rand_augment` is for uint8 images of 1 or 3 channels. Received: uint16 images",
        ),
        ({"color_jitter": ColorJitter(0.4)}, "`color_jitter` is for uint8 images of 1 or 3 channels"),
    ],
)
def test_what_does_not_go_with_arrays_is_one_sentence(wide_set, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline.load(wide_set, view="train", **{**OPTIONS, **options})


def test_pictures_have_1_or_3_channels(numbered_set):
    with pytest.raises(ValueError, match=r"must be 1 \(grey\) or 3 \(RGB\). Received: 4; split .* only arrays"):
        pipeline.load(numbered_set, view="eval", **{**OPTIONS, "channels": 4})


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy(pixels(9, 12, 5, dtype="uint8")), "is an array, uint8 of 5 channels, expected uint16 of 5 channels"),
        (npy(pixels(9, 12, 4)), "is an array, uint16 of 4 channels, expected uint16 of 5 channels"),
        (encode(pixels(9, 12, 3, dtype="uint8")), "expected an array, uint16 of 5 channels"),
    ],
)
def test_a_sample_of_another_kind_is_named(wide_set, tmp_path, member, message):
    source = write_arrays(tmp_path, [member], array_kind(member), [1])
    split = dataclasses.replace(source.splits["train"], arrays=ArrayKind("uint16", 5))
    shard_set = dataclasses.replace(source, splits={"train": split})
    options = LoadOptions(shard_set=shard_set, split=split, view="eval", **{**OPTIONS, "batch_size": 1})
    with pytest.raises(CorruptSampleError, match=f"'00000000' in train-000000.tar cannot be decoded: .*{message}"):
        list(batches(options))
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_image(tf.constant(member), 5, "uint16")


def test_the_manifest_remembers_what_the_arrays_are(wide_set, tmp_path, numbered_set):
    assert wide_set.splits["train"].arrays == ArrayKind("uint16", 5)
    assert b"arrays" not in manifest_bytes(numbered_set)
    wrong = manifest_bytes(wide_set).replace(b'"uint16"', b'"float32"')
    (tmp_path / "manifest.json").write_bytes(wrong)
    with pytest.raises(ManifestError, match="float32 of 5 channels, expected uint8 or uint16"):
        load_manifest(tmp_path)


def test_tars_without_a_manifest_give_arrays_of_8_bits(tmp_path):
    image = pixels(6, 8, 4, dtype="uint8")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        data = npy(image)
        info = tarfile.TarInfo("0.npy")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    dataset = pipeline.stream(
        tmp_path / "a.tar", view="eval", batch_size=1, image_size=(6, 8), resize_size=6, channels=4
    )
    np.testing.assert_array_equal(next(dataset.as_numpy_iterator())[0]["image"][0], image)
