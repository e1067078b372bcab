"""keras_mae.predict: the likeliest classes by name; broken images are named and do not stop the others."""

import json

import numpy as np
import pytest
from fixtures.commands import TINY, run_command
from fixtures.shard_sets import encode
from fixtures.tiny_vit import TINY_VIT

from keras_mae import finetune, predict
from keras_mae.models import Classifier, VisionTransformer
from keras_mae.training.class_names import ClassNamesError, read_class_names, write_class_names
from keras_mae.training.saved_model import load_model


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Folder with a classifier in `export`, as far as this command looks into a run folder."""
    folder = tmp_path_factory.mktemp("tuned")
    classifier = Classifier(VisionTransformer(**TINY_VIT, final_norm=False), 2)
    classifier.build()
    classifier.head.kernel.assign(np.random.default_rng(0).normal(size=(16, 2)))
    (folder / "export").mkdir()
    classifier.save(folder / "export" / "classifier.keras")
    write_class_names(folder / "export", ["left", "right"])
    return folder


@pytest.fixture
def images(tmp_path):
    """Folder of three pictures, one of them below, and a broken one; hidden and other files."""
    rng, folder = np.random.default_rng(0), tmp_path / "images"
    (folder / "below" / ".hidden").mkdir(parents=True)
    for name in ("a.png", "below/c.PNG", "d.png", ".e.png", "below/.hidden/f.png"):
        (folder / name).write_bytes(encode(rng.integers(0, 256, (8, 8), dtype="uint8")))
    (folder / "b.png").write_text("no image")
    (folder / "notes.txt").write_text("no image")
    return folder


def run(*arguments):
    return run_command(predict, *arguments, takes_words=True)


def pixels_of(path):
    from PIL import Image

    return np.asarray(Image.open(path))[None, :, :, None]


@pytest.mark.slow
def test_fine_tuning_keeps_the_names_of_the_classes_beside_every_form_of_the_model(halves_set, tmp_path):
    flags = (f"--data={halves_set}", f"--run_dir={tmp_path}", "--steps=2", "--val_split=none", "--from_scratch")
    assert run_command(finetune, *TINY, *flags, "--deterministic=false") == 0
    export = tmp_path / "export"
    for path in (tmp_path, export, export / "classifier.keras", export / "saved_model"):
        assert read_class_names(path) == ["left", "right"]


def test_damaged_names_are_refused(tmp_path):
    assert read_class_names(tmp_path) is None
    (tmp_path / "classes.json").write_text('{"left": 1}')
    with pytest.raises(ClassNamesError, match="expected a list of names"):
        read_class_names(tmp_path)


def test_images_get_the_classifiers_probabilities_and_broken_ones_are_named(tuned, images, capsys):
    assert (
        run(f"--model={tuned}", "--json", "--batch_size=2", "--resize_size=8", str(images / "d.png"), str(images)) == 1
    )
    output = capsys.readouterr()
    rows = [json.loads(line) for line in output.out.splitlines()]
    names = ["d.png", "a.png", "b.png", "below/c.PNG", "d.png"]
    assert [row["file"] for row in rows] == [str(images / name) for name in names]
    assert rows[2] == {"file": str(images / "b.png"), "error": "expected a JPEG, PNG or WebP"}
    classifier = load_model(tuned)
    for name, row in zip(names, rows, strict=True):
        if "error" not in row:
            logits = np.asarray(classifier(pixels_of(images / name)), "float64")[0]
            probabilities = np.exp(logits) / np.exp(logits).sum()
            best = np.argsort(-probabilities)
            assert [found["class"] for found in row["best"]] == [("left", "right")[number] for number in best]
            np.testing.assert_allclose([f["probability"] for f in row["best"]], probabilities[best], rtol=1e-5)
    assert f"{images / 'b.png'} cannot be read: expected a JPEG, PNG or WebP" in output.err
    assert "ERROR: 1 of 5 images cannot be read." in output.err


def test_a_table_for_people_with_names_of_their_own(tuned, images, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("links\nrechts\n")
    flags = (
        f"--model={tuned / 'export' / 'classifier.keras'}",
        f"--classes={tmp_path / 'names.txt'}",
        "--top=1",
        "--resize_size=8",
    )
    assert run(*flags, str(images / "a.png")) == 0
    file, best = capsys.readouterr().out.splitlines()
    assert file == str(images / "a.png")
    assert best.split("%")[1].strip() in ("links", "rechts") and float(best.split("%")[0]) >= 50


def test_without_names_classes_are_numbers(tuned, images, tmp_path, capsys):
    path = tmp_path / "alone.keras"
    path.write_bytes((tuned / "export" / "classifier.keras").read_bytes())
    assert run(f"--model={path}", "--json", str(images / "a.png")) == 0
    output = capsys.readouterr()
    assert {found["class"] for found in json.loads(output.out)["best"]} == {"0", "1"}
    assert "classes are numbers; --classes=FILE names them" in output.err


REFUSED = {
    "no images": ((), "Name images, or folders of images"),
    "missing": (("IMAGES/missing.png",), "missing.png"),
    "empty folder": (("IMAGES/below/.hidden/empty",), "has no images: expected files ending in .jpg, .jpeg"),
    "names": (("--classes=IMAGES/notes.txt", "IMAGES/a.png"), "The model knows 2 classes. Received: 1 names"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_command_refuses(name, tuned, images, capsys):
    (images / "below" / ".hidden" / "empty").mkdir()
    flags, sentence = REFUSED[name]
    assert run(f"--model={tuned}", *(flag.replace("IMAGES", str(images)) for flag in flags)) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error


def test_an_encoder_is_refused(tuned, images, tmp_path, capsys):
    load_model(tuned).encoder.save(tmp_path / "encoder.keras")
    assert run(f"--model={tmp_path / 'encoder.keras'}", str(images / "a.png")) == 1
    assert "holds no classifier but an encoder" in capsys.readouterr().err
