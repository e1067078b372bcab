"""examples/transfer_with_addons.py in an environment of TensorFlow 2.15 and tensorflow-addons 0.23 (`make addons`)."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

pytestmark = pytest.mark.addons
ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PYTHON = pathlib.Path(os.environ.get("KERAS_MAE_ADDONS_PYTHON", ROOT / ".venv-addons" / "bin" / "python"))
RATE, WEIGHT_DECAY, LAYER_DECAY = 0.01, 0.1, 0.5  # of addons_process.py
HEAD = {"kernel:0": (3, True), "bias:0": (3, False)}


def run(python, *words):
    """What a process without this package prints."""
    process = subprocess.run([str(word) for word in (python, "-I", *words)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


@pytest.fixture(scope="module")
def addons():
    if not PYTHON.exists():
        pytest.skip(f"There is no {PYTHON}; `make addons` makes it, or KERAS_MAE_ADDONS_PYTHON names another.")
    return PYTHON


@pytest.fixture(scope="module")
def step(addons, encoder_export, halves_file, tmp_path_factory):
    """What addons_process.py writes."""
    output = tmp_path_factory.mktemp("step") / "found.npz"
    script = pathlib.Path(__file__).with_name("addons_process.py")
    run(addons, script, EXAMPLES / "transfer_with_addons.py", encoder_export / "saved_model", halves_file, output)
    with np.load(output) as file:
        return dict(file)


def test_outputs_before_training_are_those_of_the_keras_model(step, encoder_export, halves_file):
    from keras_mae import load_model

    tokens = load_model(encoder_export / "encoder.keras")(np.load(halves_file)["images"])
    difference = np.abs(step["tokens"] - tokens).max()
    print(f"largest difference {difference:.1e}")  # shown with -rP
    assert difference <= 1e-5
    np.testing.assert_allclose(step["class_token"], tokens[:, 0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(step["patch_mean"], np.mean(tokens[:, 1:], axis=1), rtol=0, atol=1e-5)


def first_step_of_adamw(weight, gradient, rate, weight_decay):
    """Decay by its own rate, then Adam from empty moments, with epsilon where addons has it; in float64."""
    beta_1, beta_2, epsilon = 0.9, 0.999, 1e-7
    weight, gradient = weight.astype("float64"), gradient.astype("float64")
    weight = weight - weight_decay * weight
    momentum, velocity = (1 - beta_1) * gradient, (1 - beta_2) * gradient**2
    rate = rate * np.sqrt(1 - beta_2) / (1 - beta_1)
    return weight - rate * momentum / (np.sqrt(velocity) + epsilon)


def test_a_step_is_that_of_adamw_with_the_rate_of_the_layer(step, encoder_export):
    structure = json.loads((encoder_export / "saved_model" / "assets.extra" / "keras_mae.json").read_text())
    groups = zip(structure["layers"], structure["decayed"], strict=True)
    named = dict(zip(structure["variables"], groups, strict=True))
    named = {**{f"encoder/{path}:0": group for path, group in named.items()}, **HEAD}
    assert {name.removeprefix("before ") for name in step if name.startswith("before ")} == set(named)
    moves = {}
    for name, (layer, decayed) in named.items():
        before, gradient, after = (step[f"{when} {name}"] for when in ("before", "gradient", "after"))
        rate = RATE * LAYER_DECAY ** (structure["head_layer"] - layer)
        expected = first_step_of_adamw(before, gradient, rate, rate * WEIGHT_DECAY if decayed else 0)
        np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-7, err_msg=name)
        moves.setdefault(layer, []).append(np.abs(after - before).max())
    largest = [max(moves[layer]) for layer in range(4)]
    np.testing.assert_allclose(np.divide(largest[1:], largest[:-1]), 1 / LAYER_DECAY, rtol=0.2)


@pytest.fixture(scope="module")
def tuned(addons, encoder_export, halves_file, tmp_path_factory):
    """What each example printed on fine-tuning the same encoder, and the SavedModel that it wrote."""
    found = {}
    for python, example in ((addons, "addons"), (sys.executable, "tensorflow")):
        folder = tmp_path_factory.mktemp(example) / "tuned"
        flags = [f"--saved_model={encoder_export / 'saved_model'}", f"--images={halves_file}", f"--output={folder}"]
        found[example] = run(python, EXAMPLES / f"transfer_with_{example}.py", *flags, "--epochs=5"), folder
    return found


def test_the_example_learns_as_the_one_without_addons(tuned):
    losses = {name: [float(x) for x in re.findall(r"loss ([\d.]+)", text)] for name, (text, _) in tuned.items()}
    print(losses)  # shown with -rP
    assert len(losses["addons"]) == 5
    assert losses["addons"] == sorted(losses["addons"], reverse=True)
    np.testing.assert_allclose(losses["addons"], losses["tensorflow"], atol=2e-4)  # four digits are printed


def test_what_it_saved_is_what_it_measured(tuned, halves_file):
    printed, folder = tuned["addons"]
    with np.load(halves_file) as file:
        outputs = tf.saved_model.load(str(folder)).signatures["classify"](image=tf.constant(file["images"]))
        hits = np.argmax(outputs["probabilities"], axis=1) == file["labels"]
    assert np.mean(hits) == pytest.approx(float(re.search(r"accuracy ([\d.]+)", printed)[1]), abs=5e-4)


@pytest.mark.parametrize(
    "mistake, sentence",
    [
        ("no structure", "is no whole SavedModel of keras_mae"),
        ("other size", "holds uint8 (2, 9, 8, 1); the model takes"),
    ],
)
def test_mistakes_are_named_in_one_sentence(addons, encoder_export, halves_file, tmp_path, mistake, sentence):
    saved_model, images = encoder_export / "saved_model", halves_file
    if mistake == "no structure":
        saved_model = tmp_path
    else:
        images = tmp_path / "other.npz"
        np.savez(images, images=np.zeros((2, 9, 8, 1), "uint8"), labels=[0, 1])
    words = [EXAMPLES / "transfer_with_addons.py", f"--saved_model={saved_model}", f"--images={images}"]
    process = subprocess.run([str(w) for w in (addons, "-I", *words)], capture_output=True, text=True)
    assert process.returncode == 1
    assert sentence in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr
