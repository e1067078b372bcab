"""The command: results.json says what was measured of which model on which data; the suite goes on where it stopped."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from fixtures.commands import run_command
from fixtures.shard_sets import encode, write_shard_set
from fixtures.tiny_vit import TINY_VIT

from keras_mae import evaluate
from keras_mae.evaluation.classification import Answers
from keras_mae.evaluation.results import describe_classes
from keras_mae.evaluation.results_file import (
    ResultsError,
    earlier_results,
    is_results,
    read_results,
    results_path,
    write_results,
)
from keras_mae.models import Classifier, VisionTransformer
from keras_mae.training.class_names import write_class_names

SMALL = ("--batch_size=4", "--resize_size=8")
CLASSES = ("n01", "n02", "n03")


def images_of(count, seed):
    return np.random.default_rng(seed).integers(0, 255, (count, 8, 8), dtype="uint8")


def write_set(folder, classes, labels, seed, split="val"):
    folder.mkdir(parents=True)
    images = [encode(image) for image in images_of(len(labels), seed)]
    return write_shard_set(folder, images, shard_samples=(len(labels),), labels=labels, classes=classes, split=split)


@pytest.fixture(scope="module")
def model():
    classifier = Classifier(VisionTransformer(**TINY_VIT | {"depth": 1}, final_norm=False), 3)
    classifier.build()
    classifier.head.kernel.assign(np.random.default_rng(0).normal(size=(16, 3)))
    logits = np.asarray(classifier(images_of(50, 9)[..., None]))
    classifier.head.bias.assign(-logits.mean(axis=0))  # so that no class is predicted always
    return classifier


@pytest.fixture(scope="module")
def model_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "classifier.keras"
    model.save(path)
    return path


def test_results_of_a_split(model, model_file, tmp_path):
    labels = [0, 1, 2, 0, 1, 2, 0]
    shard_set = write_set(tmp_path / "set", CLASSES, labels, seed=0)
    assert run_command(evaluate, f"--model={model_file}", f"--data={tmp_path / 'set'}", *SMALL) == 0
    results = read_results(model_file.parent / "evaluation" / "val" / "results.json")
    predicted = np.asarray(model(images_of(7, 0)[..., None])).argmax(axis=1)
    assert results["accuracy"] == (predicted == labels).mean()
    assert len(set(predicted)) > 1
    table = np.zeros((3, 3), int)
    np.add.at(table, (labels, predicted), 1)
    assert results["confusion"] == table.tolist()
    assert [row["class"] for row in results["per_class"]] == list(CLASSES)
    assert [row["images"] for row in results["per_class"]] == [3, 2, 2]
    assert [row["accuracy"] for row in results["per_class"]] == (np.diag(table) / [3, 2, 2]).tolist()
    assert (results["samples"], results["split"], results["data"]) == (7, "val", str(tmp_path / "set"))
    assert results["data_fingerprint"] == shard_set.fingerprint("val")
    weights = b"".join(np.asarray(weight).tobytes() for weight in model.weights)
    assert results["model_fingerprint"] == hashlib.sha256(weights).hexdigest()
    assert results["run"] is None and results["structure"]["embed_dim"] == 16
    assert results["seconds"] > 0 and results["images_per_second"] > 0


def test_a_suite_is_measured_once_and_says_what_is_missing(model, model_file, tmp_path, capsys):
    labels = [0, 1, 1, 0, 1]
    write_set(tmp_path / "suite" / "imagenet-a", ("n01", "n03"), labels, seed=1)
    write_set(tmp_path / "suite" / "imagenet-c" / "fog" / "3", CLASSES, [0, 1, 2], seed=2)
    output = tmp_path / "robust.json"
    flags = ("--suite=robustness", f"--data_root={tmp_path / 'suite'}", f"--output={output}", *SMALL)
    write_class_names(tmp_path, CLASSES)
    command = (f"--model={shutil.copy(model_file, tmp_path)}", *flags)
    assert run_command(evaluate, *command) == 0
    results = read_results(output)
    logits = np.asarray(model(images_of(5, 1)[..., None]))[:, [0, 2]]
    assert results["sets"]["imagenet-a"]["accuracy"] == (logits.argmax(axis=1) == labels).mean()
    assert results["sets"]["imagenet-a"]["compared_classes"] == 2
    assert results["sets"]["imagenet-c/fog/3"]["samples"] == 3
    assert results["mce"] is None and "imagenet-v2" in results["not_measured"]
    shown = capsys.readouterr()
    assert "ImageNet-V2             not measured" in shown.out and "imagenet-a: 5 images" in shown.err
    before = output.read_bytes()
    assert run_command(evaluate, *command) == 0
    assert output.read_bytes() == before
    assert "imagenet-a: 5 images" not in capsys.readouterr().err


REFUSED = {
    "no subject": ((), "Give either --run_dir=RUN"),
    "no data": (("--model=m",), "--data=SHARDS is needed"),
    "suite's flags": (("--model=m", "--data_root=d"), "are about the sets of --suite=robustness"),
    "split of a suite": (("--model=m", "--suite=robustness", "--split=val"), "whose images --suite does not read"),
    "no places": (("--model=/no/model", "--suite=robustness"), "The suite needs --data_root=DIR"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_flags_that_do_not_go_together_are_refused(name, capsys):
    flags, sentence = REFUSED[name]
    assert run_command(evaluate, *flags) == 1
    assert sentence in capsys.readouterr().err


def test_the_classes_are_those_of_the_model(tmp_path):
    with pytest.raises(ValueError, match="has no classes.json"):
        evaluate.known_classes(tmp_path, None)
    assert evaluate.known_classes(tmp_path, CLASSES) == CLASSES
    write_class_names(tmp_path, CLASSES)
    assert evaluate.known_classes(tmp_path, None) == CLASSES
    assert evaluate.known_classes(tmp_path, ("first", "second", "third")) == ("first", "second", "third")
    with pytest.raises(ValueError, match="another order: class 'n02' is number 2 there, and 1 in its classes.json"):
        evaluate.known_classes(tmp_path, ("n01", "n04", "n02"))


def test_the_confusion_of_many_classes_goes_into_a_file_of_its_own(tmp_path):
    labels = np.array([0, 5, 5, 110, 5])
    predicted = np.array([0, 5, 7, 3, 7])
    answers = Answers(labels, predicted, (labels != predicted).astype("int64"), np.zeros(5), np.arange(5))
    names = [f"class {number}" for number in range(111)]
    described, rows = describe_classes(answers, names)
    assert "confusion" not in described
    write_results(tmp_path / "results.json", described, rows)
    results = json.loads((tmp_path / "results.json").read_text())
    rows = np.load(tmp_path / results["confusion"]["file"])
    assert rows.tolist() == [[0, 0, 1], [5, 5, 1], [5, 7, 2], [110, 3, 1]]
    assert results["per_class"][5] == {"class": "class 5", "images": 3, "accuracy": 1 / 3}
    assert results["per_class"][6]["accuracy"] is None


def test_where_results_go(tmp_path):
    saved_model = tmp_path / "export" / "saved_model"
    saved_model.mkdir(parents=True)
    (saved_model / "saved_model.pb").write_bytes(b"")
    expected = tmp_path / "export" / "evaluation" / "val" / "results.json"
    assert results_path(None, tmp_path / "export", "val") == expected
    assert results_path(None, saved_model, "val") == expected
    assert results_path(None, "runs/a", "val-best").as_posix() == "runs/a/evaluation/val-best/results.json"
    assert results_path("x.json", saved_model, "val").name == "x.json"
    with pytest.raises(ValueError, match="output names a file"):
        results_path(str(tmp_path), saved_model, "val")


def test_results_of_another_model_are_not_gone_on_with(tmp_path):
    path = tmp_path / "results.json"
    description = {"model_fingerprint": "a", "precision": "float32", "classes_fingerprint": "c"}
    assert earlier_results(path, description) == {}
    write_results(path, {**description, "sets": {}})
    assert earlier_results(path, description)["sets"] == {}
    assert earlier_results(path, {**description, "precision": "mixed_bfloat16"}) == {}
    assert is_results(path) and not is_results(tmp_path)
    path.write_text('{"format": "else"}')
    with pytest.raises(ResultsError, match="no results of keras_mae.evaluate"):
        read_results(path)
