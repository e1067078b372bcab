"""A SavedModel in a process of TensorFlow and Keras alone, where this package cannot be imported."""

import pathlib
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "transfer_with_tensorflow.py"
BATCHES = (1, 7, 64)


@pytest.fixture(scope="module")
def ran(encoder_export, halves_file, tmp_path_factory):
    """What the process wrote, the epochs' losses and the accuracy that the example printed, and what it saved."""
    folder = tmp_path_factory.mktemp("plain")
    guide = (ROOT / "docs" / "saved_models.md").read_text()
    (layer,) = [block for block in re.findall(r"```python\n(.*?)```", guide, re.S) if "class Features" in block]
    (folder / "layer.py").write_text(layer)
    saved_model = encoder_export / "saved_model"
    script = pathlib.Path(__file__).with_name("plain_process.py")
    command = [sys.executable, "-I", script, saved_model, halves_file, folder / "found.npz", folder / "layer.py"]
    flags = [f"--saved_model={saved_model}", f"--images={halves_file}", f"--output={folder / 'tuned'}", "--epochs=3"]
    process = subprocess.run([*map(str, [*command, EXAMPLE]), *flags], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", process.stdout)]
    with np.load(folder / "found.npz") as file:
        return dict(file), losses, float(re.search(r"accuracy ([\d.]+)", process.stdout)[1]), folder / "tuned"


def test_batches_of_any_size_give_the_rows_of_the_keras_model(ran, encoder_export, halves_file):
    from keras_mae import load_model

    found, *_ = ran
    images = np.load(halves_file)["images"][:7]
    tokens = np.asarray(load_model(encoder_export / "encoder.keras")(images))
    expected = {"tokens": tokens, "class_token": tokens[:, 0], "patch_mean": tokens[:, 1:].mean(axis=1)}
    for name, rows in expected.items():
        for batch in BATCHES:
            received = found[f"{name} {batch}"]
            np.testing.assert_allclose(received, rows[np.arange(batch) % 7], rtol=0, atol=1e-5)
    assert np.std([t[1:].mean(axis=0) for t in tokens], axis=0).max() > 1e-3  # the images differ


def test_equal_images_give_equal_rows_in_any_batch(ran):
    found, *_ = ran
    for batch in BATCHES:
        rows = found[f"tokens {batch}"]
        np.testing.assert_allclose(rows, found["tokens 7"][np.arange(batch) % 7], rtol=0, atol=1e-6)


def test_the_layer_of_the_guide_trains_under_adam(ran):
    found, *_ = ran
    losses, moved = found["losses of the layer"], found["moved in the layer"]
    assert losses[-1] < 0.9 * losses[0]
    assert len(moved) == 30 and np.all(moved > 0)


def test_a_head_learns_on_a_frozen_tfsm_layer(ran):
    found, *_ = ran
    assert np.all(np.diff(found["losses of a frozen layer"]) < 0)
    assert len(found["moved in a frozen layer"]) == 30 and np.all(found["moved in a frozen layer"] == 0)


@pytest.mark.parametrize(
    "mistake, sentence",
    [
        ("array alone", "is no .npz file with images and labels"),
        ("cut", "is no .npz file with images and labels"),
        ("one-hot", r"labels int64 \(2, 2\); every image needs a whole number from 0 on"),
        ("decimals", r"labels float64 \(2,\); every image needs a whole number from 0 on"),
        ("too few", r"has 2 images and labels int64 \(1,\)"),
    ],
)
def test_the_example_names_what_is_wrong_with_a_file(tmp_path, mistake, sentence):
    path, images = tmp_path / "images.npz", np.zeros((2, 8, 8, 1), "uint8")
    labels = {"one-hot": np.eye(2, dtype="int64"), "decimals": np.array([0.0, 1.5]), "too few": np.array([0])}
    with open(path, "wb") as file:
        if mistake == "array alone":
            np.save(file, images)
        else:
            np.savez(file, images=images, labels=labels.get(mistake, np.array([0, 1])))
    if mistake == "cut":
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SystemExit, match=sentence):
        runpy.run_path(EXAMPLE)["read_images"](path, tf.TensorSpec((None, 8, 8, 1), "uint8"))


def test_the_example_fine_tunes_and_saves(ran, halves_file):
    _, losses, accuracy, tuned = ran
    assert len(losses) == 3 and losses == sorted(losses, reverse=True)
    with np.load(halves_file) as file:
        outputs = tf.saved_model.load(str(tuned)).signatures["classify"](image=tf.constant(file["images"]))
        hits = np.argmax(outputs["probabilities"], axis=1) == file["labels"]
    assert np.mean(hits) == pytest.approx(accuracy, abs=5e-4)
