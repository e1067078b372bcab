"""inspect_shards counts what is there, names what is damaged, and draws it. Expected numbers come from numpy, on
known images in tars that are written here by hand."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from fixtures.commands import run_command
from PIL import Image

from keras_mae.commandline import CommandError
from pipeline.manifest import ManifestError, Shard, ShardSet, Split, write_manifest
from tools import inspect_shards as inspect_shards_command
from tools.inspect_shards import BAD_LABEL, MISSING_LABEL, inspect_shards
from tools.shard_figures import byte_text, crop_thumbnail, table

CLASSES = ("cat", "dog", "emu")


def encode(width, height, kind="PNG", mode="RGB", colour=0, **options):
    buffer = io.BytesIO()
    Image.new(mode, (width, height), colour).save(buffer, kind, **options)
    return buffer.getvalue()


def write_shard(folder, name, samples, extension="png"):
    """A tar and its index. `samples` are pairs of image and label, both bytes; a label may be None."""
    lines = [f"v1.2 {len(samples)}"]
    with tarfile.open(folder / f"{name}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (image, label) in enumerate(samples):
            fields = []
            for kind, data in ((extension, image), ("cls", label)):
                if data is not None:
                    info = tarfile.TarInfo(f"{number:08d}.{kind}")
                    info.size = len(data)
                    fields.append(f"{kind} {tar.offset + 512} {len(data)} {info.name}")
                    tar.addfile(info, io.BytesIO(data))
            lines.append(" ".join(fields))
    (folder / f"{name}.idx").write_text("\n".join([*lines, ""]))
    data = (folder / f"{name}.tar").read_bytes()
    return Shard(f"{name}.tar", len(data), hashlib.sha256(data).hexdigest(), len(samples), f"{name}.idx")


def write_set(folder, splits, classes=CLASSES, extension="png"):
    """A shard set; `splits` holds for each split its shards, and for each of those its samples."""
    folder.mkdir(exist_ok=True)
    written = {}
    for name, shards in splits.items():
        files = tuple(write_shard(folder, f"{name}-{i:06d}", samples, extension) for i, samples in enumerate(shards))
        written[name] = Split(name, sum(map(len, shards)), files, {})
    write_manifest(ShardSet(str(folder), classes, written))
    return folder


SIZES = [(10 + 3 * i, 40 - 2 * i) for i in range(12)]
LABELS = [0, 0, 1, 0, 2, 0, 1, 0, 0, 0, 1, 0]


@pytest.fixture
def samples():
    return [(encode(*size), str(label).encode()) for size, label in zip(SIZES, LABELS, strict=True)]


@pytest.fixture
def shards(tmp_path, samples):
    """12 images in 2 shards of a split, 2 in another."""
    return write_set(tmp_path / "set", {"train": [samples[:5], samples[5:]], "val": [samples[:2]]})


def test_numbers_bytes_and_labels_are_those_of_the_tars(shards, samples):
    inspection = inspect_shards(shards)
    assert inspection.classes == CLASSES
    assert list(inspection.splits) == ["train", "val"]
    train = inspection.splits["train"]
    assert (train.num_samples, train.num_shards) == (12, 2)
    assert train.tar_bytes == sum((shards / f"train-{i:06d}.tar").stat().st_size for i in range(2))
    assert train.image_bytes.tolist() == [len(image) for image, _ in samples]
    assert train.extensions == {"png": 12}
    assert train.labels.tolist() == LABELS
    assert inspection.class_counts("train").tolist() == np.bincount(LABELS).tolist()
    assert inspection.class_counts("val").tolist() == [2, 0, 0]


def test_sizes_are_those_of_the_images(shards):
    train = inspect_shards(shards).splits["train"]
    assert list(zip(train.widths.tolist(), train.heights.tolist(), strict=True)) == SIZES
    assert train.num_sampled == 12
    assert train.damaged == ()


def test_a_sample_is_part_of_the_split_and_follows_the_seed(shards):
    def widths(seed):
        train = inspect_shards(shards, samples=5, seed=seed).splits["train"]
        assert train.num_sampled == len(train.opened) == 5
        assert train.labels.tolist() == LABELS  # of all, whatever the sample
        return train.widths.tolist()

    assert widths(1) == widths(1)
    assert set(widths(1)) < {width for width, _ in SIZES}
    assert len({tuple(widths(seed)) for seed in range(5)}) > 1


def test_one_split_can_be_chosen(shards):
    assert list(inspect_shards(shards, split="val").splits) == ["val"]
    with pytest.raises(ManifestError, match="has no split 'test'; its splits are: train, val"):
        inspect_shards(shards, split="test")


def test_missing_and_wrong_labels_are_counted(tmp_path):
    labels = [b" 2\n", None, b"3", b"-1", b"x", b"9" * 5000, None]
    shards = write_set(tmp_path / "set", {"train": [[(encode(4, 4), label) for label in labels]]})
    inspection = inspect_shards(shards)
    train = inspection.splits["train"]
    assert train.labels.tolist() == [2, MISSING_LABEL, *[BAD_LABEL] * 4, MISSING_LABEL]
    assert (train.num_unlabelled, train.num_bad_labels) == (2, 4)
    assert inspection.class_counts("train").tolist() == [0, 0, 1]
    assert "labels missing    2\n" in table(inspection)
    assert "labels wrong      4, expected an integer from 0 to 2\n" in table(inspection)


def test_a_set_without_classes_has_no_labels(tmp_path):
    shards = write_set(tmp_path / "set", {"train": [[(encode(4, 4), None)]]}, classes=None)
    inspection = inspect_shards(shards, output=tmp_path / "figure.png")
    assert inspection.splits["train"].labels is None
    assert "classes           none\n" in table(inspection)
    assert Image.open(tmp_path / "figure.png").format == "PNG"


def test_damaged_images_are_named_and_the_others_shown(tmp_path):
    whole = encode(7, 9, "JPEG")
    images = [whole, b"no image", whole[:-30], b"", whole]
    shards = write_set(tmp_path / "set", {"train": [[(image, b"0") for image in images]]}, extension="jpg")
    inspection = inspect_shards(shards, output=tmp_path / "figure.png")
    train = inspection.splits["train"]
    assert [sentence[:30] for sentence in train.damaged] == [f"train-000000.tar: 0000000{i}.jpg" for i in (1, 2, 3)]
    assert train.damaged[0].endswith(": it is no image that Pillow knows")
    assert train.damaged[1].endswith(": it is cut: the marker of its end is missing")
    assert train.widths.tolist() == [7, 7]
    assert len(train.thumbnails) == 2
    assert "damaged           3\n" in table(inspection)


def test_a_split_of_damaged_images_alone_is_shown_too(tmp_path):
    shards = write_set(tmp_path / "set", {"train": [[(b"no image", b"0")] * 9]})
    inspection = inspect_shards(shards, output=tmp_path / "figure.png")
    assert len(inspection.splits["train"].damaged) == 9
    assert "and 4 more" in table(inspection)
    assert Image.open(tmp_path / "figure.png").format == "PNG"


def test_contents_colours_and_turned_images_are_told(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    images = [
        encode(5, 5, "JPEG"),
        encode(5, 5, "JPEG", "CMYK"),
        encode(5, 5, "JPEG", "L", exif=turned),
        encode(5, 5, "PNG", "L"),
    ]
    shards = write_set(tmp_path / "set", {"train": [[(image, b"0") for image in images]]}, extension="jpg")
    inspection = inspect_shards(shards)
    opened = inspection.splits["train"].opened
    assert [(image.format, image.mode, image.is_turned) for image in opened] == [
        ("JPEG", "RGB", False),
        ("JPEG", "CMYK", False),
        ("JPEG", "L", True),
        ("PNG", "L", False),
    ]
    text = table(inspection)
    assert "stored as         jpg: 4\n" in text
    assert "contents          JPEG: 3, PNG: 1\n" in text
    assert "colours           grey: 2, CMYK: 1, RGB: 1\n" in text
    assert "turned by EXIF    1: " in text


def row(text, label):
    """The words after a label in the first line of a table that begins with it."""
    line = next(line for line in text.split("\n") if line.startswith(f"  {label} "))
    return line.removeprefix(f"  {label} ").split()


def test_the_table_shows_mean_and_percentiles(shards):
    text = table(inspect_shards(shards, split="train"))
    assert text.split("\n")[0].startswith("train: 12 samples in 2 shards, ")
    widths, heights = np.array(SIZES).T
    short = np.minimum(widths, heights)

    def expected(values, digits):
        return [f"{x:.{digits}f}" for x in (values.mean(), *np.percentile(values, [0, 5, 50, 95, 100]))]

    assert row(text, "width, pixels") == expected(widths, 0)
    assert row(text, "height, pixels") == expected(heights, 0)
    assert row(text, "short side, pixels") == expected(short, 0)
    assert row(text, "width : height") == expected(widths / heights, 2)


def test_the_table_names_all_of_few_classes_and_the_ends_of_many(tmp_path):
    names = tuple(f"class{i}" for i in range(11))
    labels = [label for label in range(11) for _ in range(label + 1)]  # 1 of class0, ... 11 of class10
    shards = write_set(tmp_path / "set", {"train": [[(encode(2, 2), str(x).encode()) for x in labels]]}, names)
    text = table(inspect_shards(shards))
    assert "classes           11, with 1 to 11 samples\n" in text
    assert "largest         class10: 11, class9: 10, class8: 9, class7: 8, class6: 7\n" in text
    assert "smallest        class0: 1, class1: 2, class2: 3, class3: 4, class4: 5\n" in text
    few = write_set(tmp_path / "few", {"train": [[(encode(2, 2), b"1"), (encode(2, 2), b"1"), (encode(2, 2), b"0")]]})
    assert "dog: 2, cat: 1, emu: 0\n" in table(inspect_shards(few))


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (117_003, "117.0 KB"), (2.5e9, "2.5 GB"), (3e15, "3000.0 TB")],
)
def test_bytes_are_told_in_powers_of_a_thousand(num_bytes, text):
    assert byte_text(num_bytes) == text


def test_a_thumbnail_is_the_middle_square():
    stripes = np.repeat([[255, 0, 0], [0, 255, 0], [0, 0, 255]], 200, axis=0)  # red, green, blue: (600, 3)
    wide = Image.fromarray(np.broadcast_to(stripes, (200, 600, 3)).astype(np.uint8))
    for image in (wide, wide.transpose(Image.Transpose.ROTATE_90)):
        thumbnail = crop_thumbnail(image)
        assert thumbnail.shape == (160, 160, 3)
        assert (thumbnail[2:-2, 2:-2] == [0, 255, 0]).all()  # the outermost pixels may mix


def test_a_small_image_is_not_enlarged():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert (crop_thumbnail(Image.fromarray(pixels)) == pixels).all()


def test_a_16_bit_thumbnail_keeps_the_high_byte():
    pixels = np.array([[0, 256], [0x1234, 65535]], np.uint16)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    assert crop_thumbnail(Image.open(encoded))[..., 0].tolist() == [[0, 1], [0x12, 255]]


def test_the_figure_shows_the_images_of_the_largest_split(tmp_path):
    green, blue = (0, 201, 50), (17, 0, 222)
    splits = {"train": [[(encode(30, 20, colour=green), b"0")] * 3], "val": [[(encode(20, 30, colour=blue), b"1")]]}
    inspect_shards(write_set(tmp_path / "set", splits), output=tmp_path / "figure.png")
    pixels = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB"))
    side = np.sqrt(np.sum((pixels == green).all(axis=-1)) / 3)
    assert 100 < side < 135  # a twelfth of the figure's width each, less gaps
    assert not (pixels == blue).all(axis=-1).any()


def test_the_same_seed_gives_the_same_figure(shards, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        inspect_shards(shards, output=tmp_path / f"{name}.png", samples=4, seed=seed)
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_odd_class_names_can_be_drawn_and_printed(tmp_path):
    names = ("犬", "$x_1^", "two\nlines", "\udcff", "long" * 50)
    samples = [(encode(4, 4), str(label).encode()) for label in range(5)]
    shards = write_set(tmp_path / "set", {"train": [samples]}, names)
    text = table(inspect_shards(shards, output=tmp_path / "figure.png"))
    assert "犬: 1, $x_1^: 1, two?lines: 1, ?: 1, longlong" in text


def test_many_classes_and_splits_of_very_different_size_can_be_drawn(tmp_path):
    names = tuple(map(str, range(100)))
    samples = [(encode(4, 4 + i % 3), str(i % 100).encode()) for i in range(3000)]
    shards = write_set(tmp_path / "set", {"train": [samples], "val": [samples[:5]]}, names)
    inspect_shards(shards, output=tmp_path / "figure.png", samples=50)
    assert Image.open(tmp_path / "figure.png").size[0] == 1600


def test_an_index_that_points_outside_its_tar_is_refused(shards):
    path = shards / "val-000000.idx"
    offset = path.read_text().split()[3]
    path.write_text(path.read_text().replace(f" {offset} ", " 99999999 ", 1))
    with pytest.raises(ManifestError, match="val-000000.idx is damaged: it points outside its tar, which has "):
        inspect_shards(shards)


def test_a_cut_tar_is_refused(shards):
    tar = shards / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    with pytest.raises(ManifestError, match="train-000001.tar has "):
        inspect_shards(shards)


def test_a_set_without_splits_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="has no splits"):
        inspect_shards(write_set(tmp_path / "set", {}))


def test_a_split_without_samples_can_be_shown(tmp_path):
    shards = write_set(tmp_path / "set", {"train": []})
    inspection = inspect_shards(shards, output=tmp_path / "figure.png")
    assert inspection.splits["train"].num_samples == 0
    assert "train" in table(inspection)


@pytest.mark.parametrize("number", [-5, 1 << 60, 1 << 63])
def test_impossible_numbers_in_a_manifest_are_refused(shards, number):
    path = shards / "manifest.json"
    content = json.loads(path.read_text())
    content["splits"]["val"]["samples"] = content["splits"]["val"]["shards"][0]["samples"] = number
    path.write_text(json.dumps(content))
    with pytest.raises(ManifestError, match=str(number)):
        inspect_shards(shards)


def test_a_figure_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for output, sentence in (
        ("figure.jpg", r"must end in \.png, received .*figure\.jpg"),
        ("folder.png", r"folder\.png is a folder"),
        ("missing/figure.png", r"figure\.png cannot be written: No such file or directory"),
    ):
        with pytest.raises(CommandError, match=sentence):  # and not that there is no shard set
            inspect_shards(tmp_path / "no-set", output=tmp_path / output)


def test_an_older_figure_survives_a_failure(shards, tmp_path, monkeypatch):
    def fail(inspection, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("tools.inspect_shards.draw_inspection", fail)
    (tmp_path / "figure.png").write_bytes(b"older")
    with pytest.raises(OSError, match="No space"):
        inspect_shards(shards, output=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "set"]


def test_a_set_behind_a_url_is_read_too(shards):
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").put(str(shards), f"/{shards.parent.name}", recursive=True)
    local, remote = inspect_shards(shards), inspect_shards(f"memory://{shards.parent.name}")
    assert table(remote) == table(local)


def run(*words):
    command = [sys.executable, "-m", "tools.inspect_shards", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_prints_the_table_and_writes_the_figure(shards, tmp_path):
    done = run(f"--shards={shards}", f"--output={tmp_path / 'figure.png'}", "--samples=5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(table(inspect_shards(shards, samples=5)))
    assert done.stdout.endswith(f"The figure is {tmp_path / 'figure.png'}\n")
    assert Image.open(tmp_path / "figure.png").format == "PNG"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--output="], "ERROR: --shards=FOLDER is missing; see --help\n"),
        (["--shards=nowhere", "--output="], "ERROR: nowhere does not exist; expected a folder with a shard set"),
        (["--shards=nowhere", "--output=figure"], "ERROR: --output must end in .png, received figure\n"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_1(words, sentence, capsys):
    assert run_command(inspect_shards_command, *words) == 1
    error = capsys.readouterr().err
    assert error.startswith(sentence)
    assert error.count("\n") == 1


def test_no_tensorflow_is_imported():
    code = "import sys, tools.inspect_shards; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
