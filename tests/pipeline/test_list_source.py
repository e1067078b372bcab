"""What a list of images is read as, and what is refused."""

import csv
import gc
import io
import json
import os
import pickle
import sys
import tarfile
from datetime import date

import pytest

from pipeline.locations import WHOLE, Location, SourceError, read_location
from pipeline.sources import lists
from pipeline.sources.base import UNKNOWN_SIZE
from pipeline.sources.lists import ListSource


def make_images(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())


@pytest.fixture
def folder(tmp_path):
    """A folder with the images a.jpg, b.jpg and sub/c.jpg, and the masks a.png and b.png."""
    make_images(tmp_path, "a.jpg", "b.jpg", "sub/c.jpg", "a.png", "b.png")
    return tmp_path


def write(folder, name, text):
    (folder / name).write_bytes(text.encode())
    return folder / name


def write_rows(folder, *rows):
    return write(folder, "list.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(folder, columns):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), folder / "list.parquet", row_group_size=2)
    return folder / "list.parquet"


def read_all(source):
    listing = source.scan()
    return listing, source.items(range(len(listing)))


def refuse(source, match):
    with pytest.raises(SourceError, match=match) as caught:
        source.scan()
    assert "\n" not in str(caught.value)


# Formats


def test_a_csv_list_gives_names_labels_and_columns(folder):
    text = 'image,label,caption\na.jpg,dog,"one, two"\nsub/c.jpg,cat,three\n'
    listing, items = read_all(ListSource(write(folder, "list.csv", text)))
    assert listing.classes == ("cat", "dog")
    assert listing.labels.tolist() == [1, 0]
    assert [(item.name, item.label, item.columns) for item in items] == [
        ("a.jpg", 1, {"caption": "one, two"}),
        ("sub/c.jpg", 0, {"caption": "three"}),
    ]
    assert [read_location(item.image) for item in items] == [b"a.jpg", b"sub/c.jpg"]


def test_tabs_separate_the_columns_of_a_tsv_list(folder):
    _, items = read_all(ListSource(write(folder, "list.TSV", "image\tcaption\na.jpg\tone, two\n")))
    assert items[0].columns == {"caption": "one, two"}


def test_json_lines_keep_the_types_of_columns(folder):
    row = {"image": "a.jpg", "label": 1, "size": [640, 480], "score": 0.5, "tag": None}
    listing, items = read_all(ListSource(write_rows(folder, row)))
    assert items[0].columns == {"size": [640, 480], "score": 0.5, "tag": None}
    assert (items[0].label, listing.classes) == (1, ("0", "1"))


def test_parquet_gives_what_json_lines_give(folder):
    columns = {"path": ["a.jpg", "sub/c.jpg", "b.jpg"], "class": ["x", "y", "x"], "width": [1, None, 3]}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    lines, line_items = read_all(ListSource(write_rows(folder, *rows)))
    listing, items = read_all(ListSource(write_parquet(folder, columns)))
    assert items == line_items
    assert listing.fingerprint == lines.fingerprint


def test_parquet_times_become_text(folder):
    _, items = read_all(ListSource(write_parquet(folder, {"path": ["a.jpg"], "day": [date(2021, 3, 4)]})))
    assert items[0].columns == {"day": "2021-03-04"}


def test_rows_of_csv_span_lines_and_are_read_again_in_any_order(folder):
    names = ["a.jpg", "b.jpg", "sub/c.jpg"] * 5
    captions = [f'é "{number}"' + "\r\n,\n\n" * (number % 4) for number in range(15)]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("image", "caption"), *zip(names, captions, strict=True)])
    source = ListSource(write(folder, "list.csv", text.getvalue()))
    source.scan()
    order = [14, 0, 7, 7, 3, 12]
    expected = [(names[i], {"caption": captions[i]}) for i in order]
    assert [(item.name, item.columns) for item in source.items(order)] == expected


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_windows_files_are_read(folder, name):
    rows = ["image,label", "a.jpg,3", "", "b.jpg,0"]
    if name == "list.jsonl":
        rows = ['{"image": "a.jpg", "label": 3}', "", '{"image": "b.jpg", "label": 0}']
    listing, items = read_all(ListSource(write(folder, name, "\ufeff" + "\r\n".join(rows))))
    assert [item.name for item in items] == ["a.jpg", "b.jpg"]
    assert listing.labels.tolist() == [3, 0]


def test_spaces_after_a_comma_do_not_count(folder):
    listing, items = read_all(ListSource(write(folder, "list.csv", "image, label\na.jpg, 1\n")))
    assert (items[0].label, items[0].columns) == (1, {})


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400"])
def test_numbers_that_readers_of_json_cannot_hold_become_null(folder, number):
    _, items = read_all(ListSource(write(folder, "list.jsonl", f'{{"image": "a.jpg", "score": {number}}}\n')))
    assert items[0].columns == {"score": None}


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_a_list_behind_a_url_is_read_like_a_file(folder, name):
    fsspec = pytest.importorskip("fsspec")
    text = "image,label\na.jpg,dog\n" if name == "list.csv" else '{"image": "a.jpg", "label": "dog"}\n'
    with fsspec.open(f"memory://lists/{name}", "wb") as file:
        file.write(text.encode())
    with fsspec.open("memory://lists/a.jpg", "wb") as file:
        file.write(b"far")
    listing, items = read_all(ListSource(f"memory://lists/{name}"))
    assert items[0].image == Location("memory://lists/a.jpg")
    assert read_location(items[0].image) == b"far"
    assert listing.classes == ("dog",)
    _, items = read_all(ListSource(f"memory://lists/{name}", image_root=folder))
    assert read_location(items[0].image) == b"a.jpg"


def test_temporary_files_go_with_the_source(folder):
    source = ListSource(write_parquet(folder, {"path": ["a.jpg"]}))
    source.scan()
    descriptor = source._list._unpacked.fileno()
    del source
    gc.collect()
    with pytest.raises(OSError):
        os.fstat(descriptor)


# Images


def test_paths_are_relative_to_the_image_root(folder):
    (folder / "lists").mkdir()
    file = write(folder / "lists", "list.csv", f"image\na.jpg\n{folder}/b.jpg\n")
    _, items = read_all(ListSource(file, image_root=folder))
    assert [read_location(item.image) for item in items] == [b"a.jpg", b"b.jpg"]
    assert items[1].name == f"{folder}/b.jpg"


def test_a_url_is_an_image_of_unknown_size(folder):
    listing, items = read_all(ListSource(write(folder, "list.csv", "url\nhttps://host/a.jpg\na.jpg\n")))
    assert items[0].image == Location("https://host/a.jpg", 0, WHOLE)
    assert listing.tar_bytes[0] == UNKNOWN_SIZE
    assert listing.tar_bytes[1] > 0


def test_the_image_column_is_the_first_known_one_or_the_one_named(folder):
    file = write_rows(folder, {"thumb": "b.jpg", "path": "a.jpg", "url": "https://host/a.jpg"})
    _, items = read_all(ListSource(file))
    assert (items[0].name, set(items[0].columns)) == ("a.jpg", {"thumb", "url"})
    _, items = read_all(ListSource(file, image_column="thumb"))
    assert (items[0].name, set(items[0].columns)) == ("b.jpg", {"path", "url"})


def test_a_path_that_occurs_twice_is_two_samples(folder):
    listing, items = read_all(ListSource(write(folder, "list.csv", "image,n\na.jpg,1\na.jpg,2\n")))
    assert [item.columns for item in items] == [{"n": "1"}, {"n": "2"}]
    assert len(listing) == 2


def test_tar_bytes_are_what_the_sample_takes_in_a_tar(folder):
    (folder / "a.jpg").write_bytes(bytes(1000))
    (folder / "a.png").write_bytes(bytes(512))
    file = write_rows(folder, {"image": "a.jpg", "label": 12, "mask": "a.png", "caption": "c" * 2000})
    listing, (item,) = read_all(ListSource(file, members={"png": "mask"}))
    with tarfile.open(folder / "sample.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for data in (bytes(1000), bytes(512), item.json_member(), b"12"):
            header = tarfile.TarInfo("0")
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
        assert listing.tar_bytes.tolist() == [tar.offset]


def test_members_are_further_files_of_a_sample(folder):
    file = write(folder, "list.csv", "image,mask\na.jpg,a.png\nb.jpg,\nb.jpg,https://host/b.png\n")
    listing, items = read_all(ListSource(file, members={"seg.png": "mask"}))
    assert items[0].members == (("seg.png", Location(str(folder / "a.png"), 0, 5)),)
    assert items[1].members == ()
    assert items[2].members == (("seg.png", Location("https://host/b.png", 0, WHOLE)),)
    assert listing.tar_bytes[0] - listing.tar_bytes[1] == 2 * tarfile.BLOCKSIZE
    assert listing.tar_bytes[2] == UNKNOWN_SIZE


def test_missing_files_are_counted_and_the_first_is_named(folder):
    file = write(folder, "list.csv", "image,mask\na.jpg,a.png\nx.jpg,\nb.jpg,y.png\nz.jpg,\n")
    source = ListSource(file, members={"png": "mask"})
    refuse(source, "3 of 4 rows name files that do not exist. The first: .*list.csv, line 3 names 'x.jpg'")


def test_a_wrong_folder_is_noticed_before_all_of_a_list_is_looked_up(folder, monkeypatch):
    monkeypatch.setattr(lists, "MAX_MISSING", 3)
    file = write(folder, "list.csv", "image\na.jpg\n" + "x.jpg\n" * 10)
    refuse(ListSource(file), "3 of the first 4 rows name files that do not exist. The first: .* line 3 names")


def test_a_member_that_is_missing_is_named(folder):
    file = write(folder, "list.csv", "image,mask\na.jpg,nowhere.png\n")
    refuse(ListSource(file, members={"png": "mask"}), "list.csv, line 2 names 'nowhere.png', but .* does not exist")


@pytest.mark.parametrize("extension", ["json", "cls", "", ".png", "a/b", "x" * 81, "\u00e9" * 41])
def test_an_extension_that_a_sample_cannot_have_is_refused(folder, extension):
    with pytest.raises(SourceError, match="--member names "):
        ListSource(folder / "list.csv", members={extension: "mask"})


# Labels


def label_rows(folder, *labels):
    return write_rows(folder, *({"image": "a.jpg", "label": label} for label in labels))


def test_integer_labels_count_classes_up_to_the_largest(folder):
    listing = ListSource(label_rows(folder, 2, 0, 2)).scan()
    assert listing.classes == ("0", "1", "2")
    assert (listing.labels.tolist(), listing.labels.dtype) == ([2, 0, 2], "int32")


def test_integer_labels_take_the_given_classes(folder):
    listing = ListSource(label_rows(folder, 1, 0), classes=["dog", "cat"]).scan()
    assert (listing.classes, listing.labels.tolist()) == (("dog", "cat"), [1, 0])


def test_names_take_the_order_of_the_given_classes(folder):
    listing = ListSource(label_rows(folder, "cat", "dog"), classes=["dog", "ape", "cat"]).scan()
    assert (listing.classes, listing.labels.tolist()) == (("dog", "ape", "cat"), [2, 0])


def test_digits_are_a_name_where_the_classes_say_so(folder):
    listing = ListSource(label_rows(folder, "7", "5"), classes=["5", "7"]).scan()
    assert listing.labels.tolist() == [1, 0]


def test_a_list_without_a_label_column_has_no_labels(folder):
    listing, items = read_all(ListSource(write(folder, "list.csv", "image\na.jpg\n")))
    assert (listing.labels, listing.classes, items[0].label) == (None, None, None)


def test_an_empty_label_column_name_reads_without_labels(folder):
    listing, items = read_all(ListSource(label_rows(folder, "dog"), label_column=""))
    assert listing.labels is None
    assert items[0].columns == {"label": "dog"}


def test_the_label_column_can_be_named(folder):
    file = write_rows(folder, {"image": "a.jpg", "label": "dog", "breed": "beagle"})
    assert ListSource(file, label_column="breed").scan().classes == ("beagle",)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ((1, "dog"), "line 2 has the label 'dog', a class name, and those before are numbers"),
        (("dog", "1"), "line 2 has the label '1', a number, and those before are class names"),
        ((1, None), "line 2 has no label"),
        (("dog", ""), "line 2 has no label"),
        ((0, -1), "line 2 has the label -1; expected a whole number from 0"),
        (("0", "-1"), "line 2 has the label '-1'; expected a whole number from 0"),
        (("1.0",), "line 1 has the label '1.0'; expected a whole number from 0"),
        ((1.0,), r"line 1 has the label 1\.0; expected a whole number"),
        ((True,), "line 1 has the label True; expected a whole number"),
        ((1, True), "line 2 has the label True; expected a whole number"),
        (("\ud800",), "line 1 has the label '.ud800', which is no valid text"),
        ((["dog"],), r"line 1 has the label \['dog'\]; expected"),
        ((10**12,), "line 1 has the label 1000000000000; expected a whole number from 0 to 999999"),
    ],
)
def test_labels_that_cannot_be_used_are_named_by_line(folder, labels, match):
    refuse(ListSource(label_rows(folder, *labels)), match)


def test_labels_outside_the_given_classes_are_refused(folder):
    refuse(ListSource(label_rows(folder, 0, 2), classes=["a", "b"]), "line 2 has the label 2; .* from 0 to 1")
    refuse(ListSource(label_rows(folder, "a", "c"), classes=["a", "b"]), "line 2 has the label 'c', .* the 2 classes")


def test_a_json_row_that_lacks_what_the_first_has_is_named(folder):
    first = {"image": "a.jpg", "label": "dog"}
    refuse(ListSource(write_rows(folder, first, {"image": "a.jpg"})), "line 2 has no label")
    refuse(ListSource(write_rows(folder, first, {"label": "dog"})), "line 2 names None; expected the path or URL")
    refuse(ListSource(write_rows(folder, {"image": "a.jpg"}, first)), "line 2 has a label, and the first row has none")


@pytest.mark.parametrize(("classes", "match"), [([], "classes is empty"), (["a", "b", "a"], "classes name 'a' twice")])
def test_classes_that_make_no_sense_are_refused(folder, classes, match):
    with pytest.raises(SourceError, match=match):
        ListSource(folder / "list.csv", classes=classes)


def test_classes_for_a_list_without_labels_are_refused(folder):
    file = write(folder, "list.csv", "image\na.jpg\n")
    refuse(ListSource(file, classes=["a"]), "no column for labels, but --classes is given")
    assert ListSource(file, classes=["a"], label_column="").scan().classes is None


# Changes


def test_the_fingerprint_follows_what_goes_into_the_shards(folder):
    base = {"image": "a.jpg", "label": "dog", "caption": "one", "mask": "a.png"}

    def fingerprint(**changes):
        return ListSource(write_rows(folder, {**base, **changes}), members={"png": "mask"}).scan().fingerprint

    before = fingerprint()
    assert fingerprint() == before
    changed = [fingerprint(image="b.jpg"), fingerprint(label="cat"), fingerprint(caption="two")]
    (folder / "a.jpg").write_bytes(b"longer than before")
    changed.append(fingerprint())
    (folder / "a.png").write_bytes(b"longer than before")
    changed.append(fingerprint())
    assert len({before, *changed}) == 6


def test_the_stamp_follows_the_times_of_images(folder):
    source = ListSource(write(folder, "list.csv", "image\na.jpg\n"))
    before = source.scan()
    os.utime(folder / "a.jpg", ns=(1, 1))
    after = source.scan()
    assert after.fingerprint == before.fingerprint
    assert after.stamp != before.stamp


def test_a_list_that_changed_after_the_scan_is_refused(folder):
    file = write(folder, "list.csv", "image,n\na.jpg,1\n")
    source = ListSource(file)
    source.scan()
    write(folder, "list.csv", "image,n\na.jpg,22\n")
    with pytest.raises(SourceError, match="list.csv changed while shards were made"):
        source.items([0])


def test_a_source_can_be_sent_to_another_process(folder):
    source = ListSource(write(folder, "list.csv", "image,n\na.jpg,1\n"))
    source.scan()
    (item,) = pickle.loads(pickle.dumps(source)).items([0])
    assert item.columns == {"n": "1"}


# What is refused


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("list.csv", "", "list.csv lists no images"),
        ("list.csv", "image,label\n", "list.csv lists no images"),
        ("list.jsonl", "\n\n", "list.jsonl lists no images"),
        ("list.jsonl", '{"image": "a.jpg"}\n{"image": "b', r"list.jsonl, line 2 is no JSON: .*column 11"),
        ("list.jsonl", '{"image": "a.jpg"}\n"b.jpg"\n', "line 2 holds 'b.jpg'; expected an object"),
        ("list.jsonl", "[" * 100_000 + "\n", "line 1 is no JSON"),
        ("list.csv", "image,n\na.jpg,1\na.jpg\n", "line 3 has 1 fields; expected 2"),
        ("list.csv", 'image,n\n"a.jpg","1\n2"\na.jpg,"3\n4",5\n', "line 4 has 3 fields; expected 2"),
        ("list.csv", 'image,n\na.jpg,1\na.jpg,"2\n', "line 3 is damaged: unexpected end of data"),
        ("list.csv", "image,n,n\n", "line 1 names two columns 'n'"),
        (
            "list.csv",
            "a.jpg,3\nb.jpg,4\n",
            "no column for images: expected one of image, path.*columns are 'a.jpg', '3'",
        ),
        ("list.csv", "image\na.jpg\nnowhere.jpg\n", "line 3 names 'nowhere.jpg', but .* does not exist"),
        ("list.csv", "image\nsub\n", "line 2 names 'sub', but .* is no file"),
        ("list.csv", "image,n\n,1\n", "line 2 names ''; expected the path or URL"),
        ("list.jsonl", '{"image": "a\\u0000.jpg"}\n', "line 1 names .* cannot be read"),
        ("list.jsonl", '{"image": "https://host/\\ud800.jpg"}\n', "line 1 names .* cannot be read"),
        ("list.csv", "image\nfile:///etc/hosts\n", "line 2 names 'file:///etc/hosts', .* give its path itself"),
        ("list.csv", "image\nsimplecache::file:///a\n", "line 2 names .* expected a plain URL"),
        ("list.jsonl", '{"image": 5}\n', "line 1 names 5; expected the path or URL"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(folder, name, text, match):
    refuse(ListSource(write(folder, name, text)), match)


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_a_list_in_another_encoding_is_refused(folder, name):
    text = "image\ncafé.jpg\n" if name == "list.csv" else '\n{"image": "café.jpg"}\n'
    (folder / name).write_bytes(text.encode("latin-1"))
    refuse(ListSource(folder / name), f"{name}, line 2 is not UTF-8 .*0xe9")


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ({"image_column": "foto"}, "--image_column"),
        ({"label_column": "foto"}, "--label_column"),
        ({"members": {"png": "foto"}}, "--member=png:foto"),
    ],
)
def test_a_column_that_is_not_there_is_refused(folder, arguments, flag):
    file = write(folder, "list.csv", "image,n\na.jpg,1\n")
    refuse(ListSource(file, **arguments), f"no column 'foto', which {flag} names; .*'image', 'n'")


@pytest.mark.parametrize("name", ["list.txt", "list", "list.csv.gz"])
def test_another_suffix_is_refused_with_those_that_are_read(name):
    with pytest.raises(SourceError, match="expected a file ending in .csv, .tsv, .jsonl, .ndjson, .parquet"):
        ListSource(name)


def test_a_folder_is_no_list(folder):
    with pytest.raises(SourceError, match="is a folder and no list"):
        ListSource(folder)


def test_a_missing_list_is_named(folder):
    refuse(ListSource(folder / "nowhere.csv"), "nowhere.csv does not exist")


def test_damaged_parquet_is_refused(folder):
    file = write_parquet(folder, {"path": ["a.jpg"]})
    file.write_bytes(file.read_bytes()[:-20])
    refuse(ListSource(file), "list.parquet cannot be read as Parquet")


def test_parquet_with_images_inside_is_refused(folder):
    file = write_parquet(folder, {"path": ["a.jpg"], "image": [{"bytes": b"\xff\xd8"}]})
    refuse(ListSource(file), "list.parquet has a column that holds bytes")


def test_a_bad_row_of_parquet_is_named_by_its_number(folder):
    file = write_parquet(folder, {"path": ["a.jpg", "b.jpg", "nowhere.jpg"]})
    refuse(ListSource(file), "list.parquet, row 3 names 'nowhere.jpg'")


def test_parquet_without_pyarrow_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refuse(
        ListSource(write(folder, "list.parquet", "")), r"needs the package pyarrow: pip install 'keras-mae\[parquet\]'"
    )
