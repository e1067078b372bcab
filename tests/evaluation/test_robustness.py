"""mCE by hand, classes of subsets by name, and the suite: what is there is measured once, what is not is listed."""

import numpy as np
import pytest
from fixtures.shard_sets import encode, write_shard_set

from keras_mae.evaluation.class_map import EvaluationError
from keras_mae.evaluation.robustness import (
    ALEXNET_ERRORS,
    SETS,
    SEVERITIES,
    corruption_errors,
    match_classes,
    mean_corruption_error,
)
from keras_mae.robustness_suite import find_parts, measure_suite, parse_places, suite_text
from pipeline.manifest import ShardSet, write_manifest

KNOWN = ("n01", "n02", "n03", "n04")


def test_mce_equals_a_computation_by_hand():
    # Errors of .1 to .5, so .3 on average, under every corruption but fog, where they are twice that.
    accuracies = {name: {s: 1 - s / 10 for s in SEVERITIES} for name in ALEXNET_ERRORS}
    accuracies["fog"] = {s: 1 - s / 5 for s in SEVERITIES}
    errors = corruption_errors(accuracies)
    assert errors["brightness"] == pytest.approx(0.3 / 0.564592)
    assert errors["fog"] == pytest.approx(0.6 / 0.819324)
    # 1 / .886428 = 1.128124, and so on in the order of the table; fog's 1.220519 counts twice: 21.018012 in all
    reciprocals = [1.128124, 1.117983, 1.083846, 1.219691, 1.210261, 1.272349, 1.252568, 1.153647, 1.209816]
    reciprocals += [2 * 1.220519, 1.771190, 1.172052, 1.547853, 1.393068, 1.648805]
    assert mean_corruption_error(errors) == pytest.approx(0.3 * sum(reciprocals) / 15, rel=1e-6)


def test_alexnet_itself_has_an_mce_of_one():
    accuracies = {name: dict.fromkeys(SEVERITIES, 1 - error) for name, error in ALEXNET_ERRORS.items()}
    assert mean_corruption_error(corruption_errors(accuracies)) == pytest.approx(1)


@pytest.mark.parametrize(
    "name, accuracy, published",
    [
        ("brightness", 68.02, 56.64),
        ("contrast", 39.06, 71.43),
        ("defocus_blur", 38.75, 74.71),
        ("elastic_transform", 45.25, 84.75),
        ("fog", 45.83, 66.11),
        ("frost", 38.14, 74.84),
        ("gaussian_noise", 29.29, 79.77),
        ("glass_blur", 26.79, 88.61),
        ("impulse_noise", 23.81, 82.58),
    ],
)
def test_errors_of_a_resnet_50_equal_those_that_others_published(name, accuracy, published):
    errors = corruption_errors({name: dict.fromkeys(SEVERITIES, accuracy / 100)})
    assert 100 * errors[name] == pytest.approx(published, abs=0.02)


def test_a_corruption_without_one_severity_gives_no_error_and_no_mce():
    accuracies = {name: dict.fromkeys(SEVERITIES, 0.5) for name in ALEXNET_ERRORS}
    del accuracies["snow"][4]
    errors = corruption_errors(accuracies)
    assert set(ALEXNET_ERRORS) - set(errors) == {"snow"}
    assert mean_corruption_error(errors) is None


def test_a_subset_compares_its_classes_only_and_others_all():
    restricted = match_classes(KNOWN, ("n04", "n02"), SETS["imagenet-a"])
    np.testing.assert_array_equal(restricted.columns, [1, 3])
    np.testing.assert_array_equal(restricted.positions, [1, 0])
    whole = match_classes(KNOWN, ("n04", "n02"), SETS["imagenet-sketch"])
    np.testing.assert_array_equal(whole.columns, [0, 1, 2, 3])
    np.testing.assert_array_equal(whole.positions, [3, 1])


def test_numbered_folders_are_numbers_and_not_places_in_the_sorted_list():
    known = tuple(f"n{number:02}" for number in range(12))
    names = tuple(sorted(map(str, range(12))))  # 0, 1, 10, 11, 2, ...
    class_map = match_classes(known, names, SETS["imagenet-v2"])
    np.testing.assert_array_equal(class_map.positions, [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9])
    with pytest.raises(EvaluationError, match="does not know 12 of the 12 classes of ImageNet-Sketch: 0, 1, 10, ..."):
        match_classes(known, names, SETS["imagenet-sketch"])


def test_a_class_that_the_model_does_not_know_is_named():
    with pytest.raises(EvaluationError, match="does not know 1 of the 2 classes of ImageNet-R: n09. Expected"):
        match_classes(KNOWN, ("n01", "n09"), SETS["imagenet-r"])


def write_set(folder, classes, split="val"):
    folder.mkdir(parents=True, exist_ok=True)
    images = [encode(np.full((8, 8), 20 * number, "uint8")) for number in range(2)]
    return write_shard_set(folder, images, shard_samples=(2,), labels=[0, 1], classes=classes, split=split)


def write_splits(folder, names):
    splits = {name: write_set(folder, KNOWN, name).split(name) for name in names}
    write_manifest(ShardSet(str(folder), KNOWN, splits))


def test_a_whole_suite_is_found_and_gives_an_mce(tmp_path):
    for name in ("imagenet-a", "imagenet-r", "imagenet-sketch"):
        write_set(tmp_path / name, ("n01", "n03"))
    write_set(tmp_path / "imagenet-v2", ("0", "3"))
    write_splits(tmp_path / "imagenet-c", [f"{name}-{s}" for name in ALEXNET_ERRORS for s in SEVERITIES])
    parts, missing = find_parts(parse_places(str(tmp_path), []), KNOWN, (8, 8), 10)
    assert len(parts) == 4 + 75 and missing == []
    assert {part.resize_size for part in parts if part.name.startswith("imagenet-c/")} == {8}
    assert {part.resize_size for part in parts if not part.name.startswith("imagenet-c/")} == {10}

    def measure(part):
        return {"accuracy": 1 - int(part.name[-1]) / 10 if part.name.startswith("imagenet-c/") else 0.25, "samples": 2}

    results = measure_suite(parts, missing, {}, measure, save=lambda results: None)
    by_hand = 0.3 * np.mean([1 / error for error in ALEXNET_ERRORS.values()])
    assert results["mce"] == pytest.approx(by_hand)
    assert f"ImageNet-C mCE          {100 * by_hand:.1f}%" in suite_text(results)
    assert results["sets"]["imagenet-r"]["compared_classes"] == 2
    assert results["sets"]["imagenet-v2"]["compared_classes"] == 4


def test_what_is_missing_is_listed_and_never_measured(tmp_path):
    write_set(tmp_path / "a", ("n01", "n03"))
    for severity in SEVERITIES:
        write_set(tmp_path / "c" / "fog" / str(severity), KNOWN)
    write_set(tmp_path / "c" / "snow" / "2", KNOWN)
    words = [f"imagenet-a={tmp_path / 'a'}", f"imagenet-c={tmp_path / 'c'}"]
    parts, missing = find_parts(parse_places(None, words), KNOWN, (8, 8), None)
    assert [part.name for part in parts] == [
        "imagenet-a",
        "imagenet-c/snow/2",
        *(f"imagenet-c/fog/{severity}" for severity in SEVERITIES),
    ]
    assert {"imagenet-r", "imagenet-sketch", "imagenet-v2", "imagenet-c/snow/1"} <= set(missing)
    assert len(missing) == 3 + 69
    results = measure_suite(parts, missing, {}, lambda part: {"accuracy": 0.5, "samples": 2}, lambda results: None)
    assert results["mce"] is None
    assert results["corruption_errors"] == {"fog": pytest.approx(0.5 / 0.819324)}
    text = suite_text(results)
    assert "ImageNet-V2             not measured" in text and "ImageNet-C mCE          not measured" in text
    assert "snow/1, snow/3" in text


def test_a_killed_suite_goes_on_and_measures_other_data_again(tmp_path):
    write_set(tmp_path / "imagenet-a", ("n01", "n03"))
    write_set(tmp_path / "imagenet-r", ("n01", "n03"))
    places = parse_places(str(tmp_path), [])
    parts, missing = find_parts(places, KNOWN, (8, 8), None)
    saved, measured = [], []

    def measure(part):
        measured.append(part.name)
        return {"accuracy": 0.5, "samples": 2}

    measure_suite(parts[:1], missing, {}, measure, saved.append)
    whole = measure_suite(parts, missing, saved[-1], measure, saved.append)
    assert measured == ["imagenet-a", "imagenet-r"]
    assert list(whole["sets"]) == measured
    images = [encode(np.full((8, 8), 99, "uint8"))] * 2
    write_shard_set(
        tmp_path / "imagenet-a", images, shard_samples=(2,), labels=[0, 1], classes=("n01", "n03"), split="val"
    )
    parts, missing = find_parts(places, KNOWN, (8, 8), None)
    measure_suite(parts, missing, whole, measure, saved.append)
    assert measured == ["imagenet-a", "imagenet-r", "imagenet-a"]


@pytest.mark.parametrize(
    "root, words, sentence",
    [
        (None, [], "needs --data_root=DIR"),
        (None, ["imagenet-x=here"], "NAME of imagenet-a, imagenet-r"),
        (None, ["imagenet-a"], "suite_data takes NAME=SHARDS"),
        (None, ["imagenet-a=/nowhere/at/all"], "imagenet-a is at /nowhere/at/all, but nothing is there"),
    ],
)
def test_places_that_are_none_are_refused(root, words, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_places(root, words)


def test_a_suite_without_any_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="None of the suite's shard sets is there"):
        find_parts(parse_places(str(tmp_path), []), KNOWN, (8, 8), None)
