"""What tars in WebDataset format are read as, and what is refused."""

import gzip
import io
import json
import pickle
import tarfile

import pytest
import webdataset
from fixtures.imagenet_archives import tar_bytes
from PIL import Image

from pipeline.image_files import ImageOptions
from pipeline.locations import SourceError, read_location
from pipeline.sources.base import sample_tar_bytes
from pipeline.sources.webdataset import WebDatasetSource
from pipeline.tar_members import TarMember
from pipeline.tar_samples import samples_of, split_key
from pipeline.writing import ShardTask, write_shard


def write_tar(path, *samples):
    """Writes samples, dicts of encoded members with a "__key__", by webdataset's own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def write_files(path, *files):
    """Writes (name, contents), in this order and with repetitions."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes(buffer.getvalue())
    return WebDatasetSource(path)


def labelled(key, label):
    return {"__key__": key, "cls": str(label).encode(), "jpg": f"image {key}".encode()}


def items_of(source):
    return source.items(range(len(source.scan())))


def refuse(source, match):
    with pytest.raises(SourceError, match=match):
        source.scan()


def test_samples_come_tar_by_tar_with_their_labels(tmp_path):
    write_tar(tmp_path / "b.tar", labelled("000", 2), labelled("001", 0))
    write_tar(tmp_path / "a.tar", labelled("002", 1))
    source = WebDatasetSource(tmp_path)
    listing, items = source.scan(), items_of(source)
    assert [(item.name, item.label) for item in items] == [("a.tar/002", 1), ("b.tar/000", 2), ("b.tar/001", 0)]
    assert [read_location(item.image) for item in items] == [b"image 002", b"image 000", b"image 001"]
    assert listing.labels.tolist() == [1, 2, 0]
    assert listing.classes == ("0", "1", "2")
    assert (items[0].members, items[0].columns) == ((), None)


def test_samples_are_those_that_webdataset_reads(tmp_path):
    samples = [
        {"__key__": "a/1", "jpg": b"j", "json": b'{"x": 1}', "txt": b"t", "seg.png": b"s"},
        {"__key__": "a/2", "JPG": b"j2", "json": b"{}", "B.npy": b"n"},
        {"__key__": "ü/\u732b 3", "webp": b"w" * 600},
    ]
    path = write_tar(tmp_path / "x.tar", *samples)
    source = WebDatasetSource(path)
    expected = [
        {name: data for name, data in sample.items() if not name.startswith("__")} | {"key": sample["__key__"]}
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
    ]
    received = []
    for item in items_of(source):
        sample = {extension: read_location(location) for extension, location in item.members}
        sample |= {"key": item.name.removeprefix("x.tar/"), source_image(item, expected): read_location(item.image)}
        received.append(sample | ({} if item.columns is None else {"json": json.dumps(item.columns).encode()}))
    assert received == expected


def source_image(item, expected):
    # The image's extension is not part of an item: take it from what webdataset read.
    key = item.name.removeprefix("x.tar/")
    return next(name for sample in expected if sample["key"] == key for name in ("jpg", "webp") if name in sample)


def test_without_labels_there_are_no_classes(tmp_path):
    source = WebDatasetSource(write_tar(tmp_path / "x.tar", {"__key__": "1", "png": b"p"}))
    listing = source.scan()
    assert (listing.labels, listing.classes, items_of(source)[0].label) == (None, None, None)


def test_given_classes_name_the_labels(tmp_path):
    path = write_tar(tmp_path / "x.tar", labelled("1", 1))
    assert WebDatasetSource(path, classes=["cat", "dog", "cow"]).scan().classes == ("cat", "dog", "cow")
    refuse(WebDatasetSource(path, classes=["cat"]), "'1' in .*x.tar has the label 1; expected less than 1")


def test_what_img2dataset_writes_is_read_without_labels(tmp_path):
    for shard in range(2):
        keys = [f"{shard:05d}{number:04d}" for number in range(2)]
        columns = [json.dumps({"caption": "a 'cat' \u732b", "key": key, "width": 5, "sha256": None}) for key in keys]
        samples = [
            {"__key__": key, "jpg": b"image", "txt": b"caption", "json": text.encode()}
            for key, text in zip(keys, columns, strict=True)
        ]
        write_tar(tmp_path / f"{shard:05d}.tar", *samples)
        (tmp_path / f"{shard:05d}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
    (tmp_path / ".hidden").write_bytes(b"")
    source = WebDatasetSource(tmp_path)
    listing, item = source.scan(), items_of(source)[3]
    assert listing.ignored == ("00000.parquet", "00000_stats.json", "00001.parquet", "00001_stats.json")
    assert item.name == "00001.tar/000010001"
    assert item.columns == {"caption": "a 'cat' \u732b", "key": "000010001", "width": 5, "sha256": None}
    assert [(extension, read_location(location)) for extension, location in item.members] == [("txt", b"caption")]


def test_a_source_in_the_json_stays(tmp_path):
    samples = [{"__key__": "1", "jpg": b"j", "json": b'{"source": "cat/1.jpg"}'}, {"__key__": "2", "jpg": b"j"}]
    first, second = items_of(WebDatasetSource(write_tar(tmp_path / "x.tar", *samples)))
    assert json.loads(first.json_member()) == {"source": "cat/1.jpg"}
    assert json.loads(second.json_member()) == {"source": "x.tar/2"}


def test_a_json_that_is_no_object_becomes_one_column(tmp_path):
    source = WebDatasetSource(write_tar(tmp_path / "x.tar", {"__key__": "1", "jpg": b"j", "json": b"[1, 2]"}))
    assert items_of(source)[0].columns == {"json": [1, 2]}


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400"])
def test_numbers_that_readers_of_json_cannot_hold_become_null(tmp_path, number):
    sample = {"__key__": "1", "jpg": b"j", "json": f'{{"score": {number}}}'.encode()}
    assert items_of(WebDatasetSource(write_tar(tmp_path / "x.tar", sample)))[0].columns == {"score": None}


@pytest.mark.parametrize("text", [b"{", b"", b"\xff\xff", b"[" * 100_000])
def test_a_damaged_json_is_refused_by_name(tmp_path, text):
    path = write_tar(tmp_path / "x.tar", {"__key__": "a/1", "jpg": b"j", "json": text})
    refuse(WebDatasetSource(path), "'a/1' in .*x.tar has a json file that is no JSON")


def test_sizes_in_a_tar_are_those_that_are_written(tmp_path):
    pixel = io.BytesIO()
    Image.new("RGB", (3, 3)).save(pixel, "JPEG")
    sample = labelled("1", 3) | {"jpg": pixel.getvalue(), "json": '{"é": "é"}'.encode(), "seg.png": bytes(513)}
    source = WebDatasetSource(write_tar(tmp_path / "x.tar", sample))
    size = source.scan().tar_bytes.item()
    json_size = len(json.dumps({"source": "x.tar/1", "é": "é"}))
    assert size == sample_tar_bytes(len(pixel.getvalue()), json_size, True, [513])
    write_shard(ShardTask(str(tmp_path), "train", 0, 0, items_of(source), ImageOptions()))
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        last = tar.getmembers()[-1]
        assert last.offset_data + 1024 == size


@pytest.mark.parametrize(
    "extensions, image",
    [
        (["png", "jpg"], "jpg"),
        (["jpeg", "webp", "cls"], "jpeg"),
        (["PNG", "seg.jpg"], "png"),
        (["png", "webp"], "webp"),
        (["left.png", "depth.npy"], "left.png"),
        (["seg.png", "rgb.jpg"], "rgb.jpg"),
    ],
)
def test_one_file_of_a_sample_is_the_image_and_the_others_are_carried(tmp_path, extensions, image):
    sample = {"__key__": "1"} | {
        extension: b"0" if extension == "cls" else extension.encode() for extension in extensions
    }
    item = items_of(WebDatasetSource(write_tar(tmp_path / "x.tar", sample)))[0]
    assert read_location(item.image).lower() == image.encode()
    others = sorted({extension.lower() for extension in extensions} - {image, "cls"})
    assert [extension for extension, _ in item.members] == others
    assert [read_location(location).decode().lower() for _, location in item.members] == others


def test_names_with_dots_that_make_one_sample_of_several_images_are_refused(tmp_path):
    source = write_files(tmp_path / "x.tar", ("photo_0.5.jpg", b"x"), ("photo_0.6.jpg", b"y"))
    refuse(source, "'photo_0' in .*x.tar has several images, 5.jpg and 6.jpg: keys end at the first dot")


def test_files_that_belong_to_no_sample_are_listed_as_ignored(tmp_path):
    names = ["README", "__meta__", "a/.hidden.jpg", "1.jpg", "a/__x__.json", "1.txt"]
    source = write_files(tmp_path / "x.tar", *((name, b"x") for name in names))
    listing = source.scan()
    assert listing.ignored == ("x.tar/README", "x.tar/__meta__", "x.tar/a/.hidden.jpg", "x.tar/a/__x__.json")
    assert [extension for extension, _ in items_of(source)[0].members] == ["txt"]


def test_dots_in_folders_belong_to_the_key(tmp_path):
    source = write_files(tmp_path / "x.tar", ("v1.0/a.jpg", b"x"), ("v1.1/a.jpg", b"y"), ("./b.jpg", b"z"))
    assert [item.name for item in items_of(source)] == ["x.tar/v1.0/a", "x.tar/v1.1/a", "x.tar/./b"]


def test_names_that_are_no_text_are_kept(tmp_path):
    name = b"\xff\xfe\xe9".decode(errors="surrogateescape")
    source = write_files(tmp_path / "x.tar", (f"{name}.jpg", b"x"))
    item = items_of(source)[0]
    assert item.name == f"x.tar/{name}"
    assert json.loads(item.json_member()) == {"source": item.name}


@pytest.mark.parametrize("first, second", [("cls", "txt"), ("txt", "cls")])
def test_labels_are_all_or_none(tmp_path, first, second):
    samples = [{"__key__": "a", "jpg": b"j", first: b"1"}, {"__key__": "b", "jpg": b"j", second: b"1"}]
    source = WebDatasetSource(write_tar(tmp_path / "x.tar", *samples))
    has = "a label" if second == "cls" else "no label"
    refuse(source, f"Sample 'b' in .*x.tar has {has}")


@pytest.mark.parametrize("label", [b"cat", b"-1", b"1.0", b"", b"\xff", b"9" * 5000, b"99999999"])
def test_a_label_that_is_no_class_number_is_refused(tmp_path, label):
    path = write_tar(tmp_path / "x.tar", {"__key__": "1", "jpg": b"j", "cls": label})
    refuse(WebDatasetSource(path), "Sample '1' in .*x.tar has the label")


def test_a_label_may_end_its_line(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"__key__": "1", "jpg": b"j", "cls": b" 3\n"})
    assert WebDatasetSource(path).scan().labels.tolist() == [3]


def test_classes_without_labels_are_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"__key__": "1", "jpg": b"j"})
    refuse(WebDatasetSource(path, classes=("cat",)), "has no label .cls., but --classes was given")


def test_a_sample_without_an_image_is_named(tmp_path):
    source = write_files(tmp_path / "x.tar", ("1.cls", b"0"), ("1.jpg", b"j"), ("2.cls", b"0"))
    refuse(source, "Sample '2' in .*x.tar has no image: it has cls; .*next to each other")


def test_tars_of_something_else_are_told_from_damaged_samples(tmp_path):
    source = write_files(tmp_path / "x.tar", ("1.txt", b"0"), ("1.json", b"{}"))
    refuse(source, "x.tar seems to hold no images: its first sample has the files json, txt")
    refuse(write_files(tmp_path / "y.tar", ("README", b"r")), "y.tar holds no samples: .* 1 tars, with 1 other files")


@pytest.mark.parametrize("second", ["1.jpg", "1.JPG"])
def test_an_extension_that_comes_twice_is_refused(tmp_path, second):
    source = write_files(tmp_path / "x.tar", ("1.jpg", b"x"), (second, b"y"))
    refuse(source, "Sample '1' in .*x.tar has two files 'jpg'")


def test_a_cut_tar_is_named(tmp_path):
    path = write_tar(tmp_path / "x.tar", labelled("1", 0), labelled("2", 0))
    data = path.read_bytes()
    for size in (2048, 2560, 2600, 4096):  # between samples, after a label's header, in a label, at the end
        path.write_bytes(data[:size])
        refuse(WebDatasetSource(path), "x.tar is cut .* Copy the tar again")
    path.write_bytes(data + data)
    refuse(WebDatasetSource(path), "x.tar goes on at byte")
    path.write_bytes(b"no tar at all")
    refuse(WebDatasetSource(path), "x.tar is no tar")


def test_a_compressed_tar_is_told_from_a_damaged_one(tmp_path):
    path = write_tar(tmp_path / "x.tar", labelled("1", 0))
    path.write_bytes(gzip.compress(path.read_bytes()))
    refuse(WebDatasetSource(path), "x.tar is compressed with gzip, .* unpack it first: gunzip$")


def test_an_extension_that_would_not_fit_a_shard_is_refused(tmp_path):
    source = write_files(tmp_path / "x.tar", ("1.jpg", b"x"), (f"1.{'y' * 80}", b"y"))
    assert len(source.scan()) == 1
    source = write_files(tmp_path / "x.tar", ("1.jpg", b"x"), (f"1.{'y' * 81}", b"y"))
    refuse(source, "Sample '1' in .*x.tar has the extension 'yyy.*; expected at most 80 bytes")


@pytest.fixture
def numbered_tars(tmp_path):
    for number in (0, 1, 2, 10):
        write_tar(tmp_path / f"train-{number:02d}.tar", labelled(f"{number}", 0))
    write_tar(tmp_path / "sub/train-00.tar", labelled("5", 0))
    (tmp_path / "train-00.idx").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("", ["train-00.tar/0", "train-01.tar/1", "train-02.tar/2", "train-10.tar/10"]),
        ("train-0*.tar", ["train-00.tar/0", "train-01.tar/1", "train-02.tar/2"]),
        ("train-0*", ["train-00.tar/0", "train-01.tar/1", "train-02.tar/2"]),
        ("train-?[01].tar", ["train-00.tar/0", "train-01.tar/1", "train-10.tar/10"]),
        ("train-{01..02}.tar", ["train-01.tar/1", "train-02.tar/2"]),
        ("train-{10,00}.tar", ["train-00.tar/0", "train-10.tar/10"]),
        ("train-01.tar", ["train-01.tar/1"]),
        ("**/train-00.tar", ["sub/train-00.tar/5", "train-00.tar/0"]),
        ("{sub/,}train-00.tar", ["sub/train-00.tar/5", "train-00.tar/0"]),
    ],
)
def test_tars_are_found_by_folder_pattern_and_braces(numbered_tars, pattern, expected):
    source = WebDatasetSource(numbered_tars / pattern)
    assert [item.name for item in items_of(source)] == expected


@pytest.mark.parametrize("pattern", ["", "*.tar", "train-{00,01,02,10}.tar"])
def test_tars_are_found_behind_urls(numbered_tars, pattern):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for path in numbered_tars.glob("train-*"):
        memory.pipe_file(f"/shards/{path.name}", path.read_bytes())
    items = items_of(WebDatasetSource(f"memory://shards/{pattern}"))
    assert [item.name for item in items] == ["train-00.tar/0", "train-01.tar/1", "train-02.tar/2", "train-10.tar/10"]
    assert read_location(items[3].image) == b"image 10"


def test_a_name_with_braces_or_brackets_can_be_a_file(tmp_path):
    for name in ("x{1}.tar", "x[1].tar"):
        path = write_tar(tmp_path / name, labelled("1", 0))
        assert [item.name for item in items_of(WebDatasetSource(path))] == [f"{name}/1"]


@pytest.mark.parametrize(
    "pattern, match",
    [
        ("nowhere", "nowhere does not exist"),
        ("nowhere.tar", "nowhere.tar does not exist"),
        ("train-{00..03}.tar", "train-03.tar does not exist"),
        ("val-*.tar", "val-.*.tar matches no files"),
        ("train-{00..02.tar", "cannot be read as several names"),
        ("train-00.id?", "has no files ending in .tar; received 1 other files"),
        ("empty", "empty has no files ending in .tar; received 0 other files"),
    ],
)
def test_inputs_without_tars_are_refused(numbered_tars, pattern, match):
    (numbered_tars / "empty").mkdir()
    refuse(WebDatasetSource(numbered_tars / pattern), match)


def test_an_empty_tar_among_others_is_no_error(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes({}))
    write_tar(tmp_path / "b.tar", labelled("1", 0))
    (tmp_path / "c.tar").write_bytes(tar_bytes({}))
    write_tar(tmp_path / "d.tar", labelled("2", 0))
    assert [item.name for item in items_of(WebDatasetSource(tmp_path))] == ["b.tar/1", "d.tar/2"]


def test_the_fingerprint_follows_labels_and_sizes_and_the_stamp_times(tmp_path):
    path = tmp_path / "x.tar"
    before = WebDatasetSource(write_tar(path, labelled("1", 0))).scan()
    again = WebDatasetSource(write_tar(path, labelled("1", 0))).scan()
    relabelled = WebDatasetSource(write_tar(path, labelled("1", 1))).scan()
    resized = WebDatasetSource(write_tar(path, labelled("1", 1) | {"jpg": b"x"})).scan()
    assert before.fingerprint == again.fingerprint and before.stamp != again.stamp
    assert len({before.fingerprint, relabelled.fingerprint, resized.fingerprint}) == 3


def test_a_scanned_source_can_be_sent_to_another_process(tmp_path):
    source = WebDatasetSource(write_tar(tmp_path / "x.tar", labelled("1", 0), labelled("2", 1)))
    source.scan()
    assert pickle.loads(pickle.dumps(source)).items([1]) == source.items([1])


@pytest.mark.parametrize(
    "name",
    [
        "a.jpg",
        "a/b.c/d.seg.png",
        "a.b/c",
        "x.y.z.JPG",
        "./a.jpg",
        "/a/b.jpg",
        "\u00fc/\u732b.\u732b.png",
        "a b.jpg",
        "a.",
    ],
)
def test_keys_and_extensions_are_webdatasets(name):
    key, extension = webdataset.tariterators.base_plus_ext(name)
    assert split_key(name) == ((key, extension.lower()) if extension else None)


def test_files_are_grouped_while_they_follow_each_other(tmp_path):
    names = ["1.a", "1.b", "note", "1.c", "2.a", "1.a"]
    ignored = []
    samples = list(samples_of((TarMember(name, 0, 0) for name in names), ignored))
    assert [(key, [extension for extension, _ in members]) for key, members in samples] == [
        ("1", ["a", "b", "c"]),
        ("2", ["a"]),
        ("1", ["a"]),
    ]
    assert ignored == ["note"]
