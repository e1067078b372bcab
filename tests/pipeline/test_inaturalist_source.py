"""What an annotation file of iNaturalist is read as, and what is refused."""

import json
import pickle

import pytest

from pipeline.locations import SourceError, read_location
from pipeline.sources.inaturalist import INaturalistSource

CATEGORIES = [
    {"id": 7, "name": "Turdus merula", "supercategory": "Aves"},
    {"id": 2, "name": "Rosa canina", "supercategory": "Plantae"},
]
IMAGES = [
    {"id": 30, "file_name": "train_val2019/b/2.jpg", "width": 800, "height": 600, "license": 3},
    {"id": 0, "file_name": "train_val2019/a/1.jpg", "width": 800, "height": 600, "license": 3},
]
ANNOTATIONS = [{"id": 1, "image_id": 30, "category_id": 2}, {"id": 2, "image_id": 0, "category_id": 7}]


def make_source(root, *, images=IMAGES, **parts):
    for image in images:
        if type(image.get("file_name")) is str:
            (root / image["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            (root / image["file_name"]).write_bytes(image["file_name"].encode())
    (root / "train.json").write_text(json.dumps({"info": {"year": 2019}, "images": images, **parts}))
    return INaturalistSource(root, root / "train.json")


def refuse(source, match):
    with pytest.raises(SourceError, match=match):
        source.scan()


def test_images_come_sorted_by_path_with_the_rank_of_their_category(tmp_path):
    source = make_source(tmp_path, annotations=ANNOTATIONS, categories=CATEGORIES)
    listing = source.scan()
    items = source.items([0, 1])
    assert listing.classes == ("Rosa canina", "Turdus merula")
    assert listing.labels.tolist() == [1, 0]
    assert [(item.name, item.label, item.columns) for item in items] == [
        ("train_val2019/a/1.jpg", 1, {"id": 0}),
        ("train_val2019/b/2.jpg", 0, {"id": 30}),
    ]
    assert read_location(items[1].image) == b"train_val2019/b/2.jpg"


@pytest.mark.parametrize("parts", [{}, {"annotations": [], "categories": CATEGORIES}])
def test_a_test_split_has_no_labels(tmp_path, parts):
    source = make_source(tmp_path, **parts)
    listing = source.scan()
    assert (len(listing), listing.labels, listing.classes) == (2, None, None)
    assert source.items([1])[0].label is None


def test_names_that_categories_share_get_their_ids(tmp_path):
    categories = [{"id": 7, "name": "Turdus"}, {"id": 2, "name": "Turdus"}, {"id": 3, "name": 12}]
    source = make_source(tmp_path, annotations=ANNOTATIONS, categories=categories)
    assert source.scan().classes == ("2 Turdus", "12", "7 Turdus")


def test_equal_annotations_of_one_image_are_one(tmp_path):
    annotations = [*ANNOTATIONS, {"id": 3, "image_id": 0, "category_id": 7, "bbox": [0, 0, 5, 5]}]
    source = make_source(tmp_path, annotations=annotations, categories=CATEGORIES)
    assert source.scan().labels.tolist() == [1, 0]


def test_the_fingerprint_follows_labels(tmp_path):
    before = make_source(tmp_path, annotations=ANNOTATIONS, categories=CATEGORIES).scan()
    exchanged = [{**ANNOTATIONS[0], "category_id": 7}, {**ANNOTATIONS[1], "category_id": 2}]
    after = make_source(tmp_path, annotations=exchanged, categories=CATEGORIES).scan()
    assert before.fingerprint != after.fingerprint


def test_a_source_can_be_sent_to_another_process(tmp_path):
    source = make_source(tmp_path, annotations=ANNOTATIONS, categories=CATEGORIES)
    source.scan()
    assert pickle.loads(pickle.dumps(source)).items([1]) == source.items([1])


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"annotations": ANNOTATIONS[1:]}, "image 30 has no annotation"),
        ({"annotations": [*ANNOTATIONS, {"image_id": 0, "category_id": 2}]}, "image 0 two categories, 7 and 2"),
        ({"annotations": [*ANNOTATIONS, {"image_id": 5, "category_id": 2}]}, "annotates image 5, which it does not"),
        ({"annotations": [{"image_id": 0}]}, "has the entry .*'image_id': 0.*; expected 'category_id'"),
        ({"categories": CATEGORIES[:1]}, "image 30 has category 2, which is not among the 1 categories"),
        ({"categories": [*CATEGORIES, {"id": 7, "name": "x"}]}, "two categories 7"),
        ({"categories": [{"id": 2, "name": "\ud800"}]}, "has the category {'id': 2, .*whose name is no valid text"),
        ({"categories": [{"name": "x"}]}, "has the category {'name': 'x'}; expected"),
        ({"images": []}, "lists no images"),
        ({"images": [*IMAGES, {"id": 0, "file_name": "c.jpg"}]}, "lists image 0 twice"),
        ({"images": [{"id": 0, "file_name": None}]}, "expected 'file_name' in it, of type str"),
        ({"images": [{"file_name": "c.jpg"}]}, "expected 'id' in it, of type int or str"),
    ],
)
def test_annotations_that_cannot_be_used_are_refused(tmp_path, parts, match):
    refuse(make_source(tmp_path, **{"annotations": ANNOTATIONS, "categories": CATEGORIES, **parts}), match)


def test_a_missing_image_is_named(tmp_path):
    source = make_source(tmp_path, annotations=ANNOTATIONS, categories=CATEGORIES)
    (tmp_path / "train_val2019/b/2.jpg").unlink()
    refuse(source, "train.json: image 30 names 'train_val2019/b/2.jpg', but .* does not exist")


def test_missing_images_are_counted(tmp_path):
    source = make_source(tmp_path, annotations=ANNOTATIONS, categories=CATEGORIES)
    for image in IMAGES:
        (tmp_path / image["file_name"]).unlink()
    refuse(source, "2 of 2 rows name files that do not exist. The first: .*train.json: image 0 names")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b'{"images": [', "train.json is no JSON"),
        (b"[" * 100_000, "train.json is no JSON"),
        (b'{"images": ["caf\xe9"]}', "train.json is not UTF-8"),
        (b"[1, 2]", "train.json is no annotation file of iNaturalist"),
        (b'{"a.jpg": 1}', "train.json is no annotation file of iNaturalist"),
    ],
)
def test_another_file_is_refused(tmp_path, content, match):
    (tmp_path / "train.json").write_bytes(content)
    refuse(INaturalistSource(tmp_path, tmp_path / "train.json"), match)


def test_a_missing_annotation_file_is_named(tmp_path):
    refuse(INaturalistSource(tmp_path, tmp_path / "nowhere.json"), "nowhere.json does not exist")
