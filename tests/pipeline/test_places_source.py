"""What a list of Places365 is read as, and what is refused."""

import pickle

import pytest

from pipeline.locations import SourceError, read_location
from pipeline.sources.places import PlacesSource

CATEGORIES = "/a/airfield 0\n/a/airplane_cabin 1\n/a/apartment_building/outdoor 2\n"


def make_source(root, lines, categories=CATEGORIES):
    for path in ("a/airfield/00000001.jpg", "a/apartment_building/outdoor/00000001.jpg", "Places365_val_1.jpg"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    (root / "list.txt").write_bytes(lines.encode())
    (root / "categories.txt").write_bytes(categories.encode())
    return PlacesSource(root, root / "list.txt", root / "categories.txt")


TRAIN = "/a/apartment_building/outdoor/00000001.jpg 2\n/a/airfield/00000001.jpg 0\n"


def refuse(source, match):
    with pytest.raises(SourceError, match=match):
        source.scan()


def test_a_list_gives_paths_and_labels_in_its_order(tmp_path):
    source = make_source(tmp_path, TRAIN)
    listing = source.scan()
    items = source.items([0, 1])
    assert listing.classes == ("a/airfield", "a/airplane_cabin", "a/apartment_building/outdoor")
    assert listing.labels.tolist() == [2, 0]
    assert [(item.name, item.label) for item in items] == [
        ("a/apartment_building/outdoor/00000001.jpg", 2),
        ("a/airfield/00000001.jpg", 0),
    ]
    assert read_location(items[1].image) == b"a/airfield/00000001.jpg"


def test_paths_without_a_slash_are_relative_too(tmp_path):
    source = make_source(tmp_path, "Places365_val_1.jpg 1\n")
    assert source.scan().labels.tolist() == [1]
    assert read_location(source.items([0])[0].image) == b"Places365_val_1.jpg"


def test_a_list_without_labels_needs_no_categories(tmp_path):
    make_source(tmp_path, "Places365_val_1.jpg\n")
    source = PlacesSource(tmp_path, tmp_path / "list.txt")
    listing = source.scan()
    assert (listing.labels, listing.classes, source.items([0])[0].label) == (None, None, None)


def test_categories_follow_their_numbers(tmp_path):
    source = make_source(tmp_path, TRAIN, "/c 2\n/a 0\n/b 1\n")
    assert source.scan().classes == ("a", "b", "c")


def test_windows_files_are_read(tmp_path):
    source = make_source(tmp_path, "\ufeff" + TRAIN.replace("\n", "\r\n"), "\ufeff" + CATEGORIES.replace("\n", "\r\n"))
    unix = make_source(tmp_path / "unix", TRAIN)
    assert source.scan().fingerprint == unix.scan().fingerprint


def test_a_source_can_be_sent_to_another_process(tmp_path):
    source = make_source(tmp_path, TRAIN)
    source.scan()
    assert pickle.loads(pickle.dumps(source)).items([1]) == source.items([1])


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ("", "list.txt lists no images"),
        ("Places365_val_1.jpg 3\n", "list.txt, line 1 has the label 3; expected a whole number from 0 to 2"),
        ("Places365_val_1.jpg -1\n", "list.txt, line 1 ends in '-1'; expected the number of a category"),
        ("Places365_val_1.jpg cat\n", "list.txt, line 1 ends in 'cat'; expected the number of a category"),
        ("Places365_val_1.jpg 1\n\nPlaces365_val_1.jpg\n", "line 3 has no label, and the lines before it have one"),
        ("Places365_val_1.jpg\nPlaces365_val_1.jpg 1\n", "line 2 has a label, and the lines before it have none"),
        ("/a/airfield/00000002.jpg 0\n", "line 1 names 'a/airfield/00000002.jpg', but .* does not exist"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_by_line(tmp_path, lines, match):
    refuse(make_source(tmp_path, lines), match)


@pytest.mark.parametrize(
    ("categories", "match"),
    [
        ("", "categories.txt lists no categories"),
        ("/a/airfield\n", "categories.txt, line 1 has no number"),
        ("/a/airfield zero\n", "categories.txt, line 1 ends in 'zero'"),
        ("/a 0\n/b 0\n", "categories.txt, line 2 has the number 0, as 'a' has"),
        ("/a 0\na 1\n", "categories.txt, line 2 names the category 'a' again"),
        ("/a 1\n/b 2\n", "categories.txt has no category 0; expected all from 0 to 2"),
    ],
)
def test_categories_that_cannot_be_used_are_refused(tmp_path, categories, match):
    refuse(make_source(tmp_path, TRAIN, categories), match)


def test_labels_without_categories_are_refused(tmp_path):
    make_source(tmp_path, TRAIN)
    refuse(PlacesSource(tmp_path, tmp_path / "list.txt"), "list.txt has labels; give .* --categories")


def test_another_encoding_is_refused(tmp_path):
    source = make_source(tmp_path, TRAIN)
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.jpg 0\n")
    refuse(source, "list.txt, line 1 is not UTF-8")


def test_missing_images_are_counted(tmp_path):
    source = make_source(tmp_path, "x.jpg 0\nPlaces365_val_1.jpg 1\ny.jpg 0\n")
    refuse(source, "2 of 3 rows name files that do not exist. The first: .*list.txt, line 1 names 'x.jpg'")


def test_missing_files_are_named(tmp_path):
    source = make_source(tmp_path, TRAIN)
    (tmp_path / "categories.txt").unlink()
    refuse(source, "categories.txt does not exist")
    (tmp_path / "list.txt").unlink()
    refuse(source, "list.txt does not exist")
