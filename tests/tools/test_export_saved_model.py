"""tools.export_saved_model: other SavedModels of a model, which plain TensorFlow runs and our own commands load."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from fixtures.commands import run_command
from fixtures.tiny_vit import TINY_VIT
from PIL import Image

from keras_mae.models import Classifier, LinearProbe, MaskedAutoencoder, VisionTransformer
from keras_mae.training.checkpoints import Checkpoints
from keras_mae.training.class_names import read_class_names
from keras_mae.training.model_card import read_card
from keras_mae.training.run_dir import description_above
from keras_mae.training.saved_model import export, load_model
from tools import export_saved_model

RUN = {
    "command": "finetune",
    "recipe": {"resize_size": 10, "batch_size": 4, "seed": 3},
    "data": {"split": "train", "samples": 20, "fingerprint": "abc"},
    "total_steps": 10,
}
CARD = {"source_license": "CC BY-NC 4.0", "made_by": "keras_mae.finetune"}


@pytest.fixture(scope="module")
def classifier():
    model = Classifier(VisionTransformer(**TINY_VIT, final_norm=False), 3)
    model.build()
    model.head.kernel.assign(np.random.default_rng(0).normal(size=(16, 3)))
    return model


@pytest.fixture(scope="module")
def run_dir(classifier, tmp_path_factory):
    """A run folder, as far as the tool looks into one."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "recipe.json").write_text(json.dumps(RUN))
    export(classifier, folder / "export", CARD, classes=["a", "b", "c"], run_dir=folder)
    return folder


def export_anew(model, output, *flags):
    return run_command(export_saved_model, f"--model={model}", f"--output={output}", *flags)


def as_evaluation_sees_it(image, resize_size):
    """The centre of an image (height, width, 1), by Pillow."""
    height, width = image.shape[:2]
    short = min(height, width)
    size = (resize_size * width // short, resize_size * height // short)
    resized = np.asarray(Image.fromarray(image[..., 0]).resize(size, Image.BICUBIC))
    top, left = (round((side - 8) / 2) for side in resized.shape)
    return resized[top : top + 8, left : left + 8, None]


@pytest.fixture(scope="module")
def resizing(run_dir, tmp_path_factory):
    """A SavedModel that takes images of any size, in bfloat16."""
    output = tmp_path_factory.mktemp("resizing") / "model"
    assert export_anew(run_dir, output, "--resize", "--precision=bfloat16") == 0
    return output


def test_images_of_any_size_are_seen_as_in_evaluation(classifier, run_dir, tmp_path):
    assert export_anew(run_dir, tmp_path / "model", "--resize", "--layers=0,-1") == 0
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    rng = np.random.default_rng(0)
    for shape in ((3, 31, 17, 1), (1, 9, 40, 1), (2, 5, 6, 1), (2, 8, 8, 1)):
        images = rng.integers(0, 256, shape, dtype="uint8")
        seen = np.stack([as_evaluation_sees_it(image, 10) for image in images])
        received = loaded.signatures["classify"](image=tf.constant(images))["logits"]
        # A level more or less where Pillow's integers round otherwise.
        np.testing.assert_allclose(received, classifier(seen), atol=0.02)
        wrong = classifier(np.stack([as_evaluation_sees_it(image, 12) for image in images]))
        assert np.abs(received - wrong).max() > 0.1
    features = loaded.signatures["features"](image=tf.constant(images))
    assert {name for name in features if name.startswith("tokens_")} == {"tokens_after_block_0", "tokens_after_block_1"}


def test_our_commands_rebuild_the_model_and_know_where_it_came_from(classifier, resizing):
    model = load_model(resizing)
    images = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 1), dtype="uint8")
    assert {variable.dtype for variable in model.weights} == {"float32"}
    np.testing.assert_allclose(model(images), classifier(images), atol=0.1)
    assert description_above(resizing) == RUN
    assert read_class_names(resizing) == ["a", "b", "c"]
    card = read_card(resizing)
    assert (card["source_license"], card["made_by"]) == ("CC BY-NC 4.0", "keras_mae.finetune")
    assert card["saved_model_precision"] == "bfloat16" and card["image"]["shape"][1] == "any height"
    assert card["training"] == {"steps": 10, "batch_size": 4, "epochs": 2.0, "seed": 3}
    readme = (resizing / "README.md").read_text()
    assert "source_license: CC BY-NC 4.0" in readme and "- kind: Classifier" in readme


@pytest.mark.slow
def test_the_card_of_an_export_stays_while_its_run_goes_on(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "run" / "recipe.json").write_text(json.dumps({**RUN, "total_steps": 20}))
    assert export_anew(tmp_path / "run", tmp_path / "model") == 0
    assert read_card(tmp_path / "model")["training"]["steps"] == 10


@pytest.mark.slow
def test_it_can_be_exported_again_into_an_empty_folder(resizing, tmp_path, capsys, monkeypatch):
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    assert export_anew(resizing, ".", "--image_dtype=uint16", "--drop_path_rate=.2") == 0
    assert "signatures: features, classify, features_training" in capsys.readouterr().out
    signatures = tf.saved_model.load(str(tmp_path / "again")).signatures
    assert signatures["features"].structured_input_signature[1]["image"].dtype == tf.uint16
    assert load_model(tmp_path / "again").encoder.drop_path_rate == 0.2


def test_reconstruct_takes_the_autoencoder_beside_its_encoder_with_masks_of_any_kind(tmp_path):
    model = MaskedAutoencoder(VisionTransformer(**TINY_VIT), 16, 1, 2, mask_kind="block")
    model.build()
    (tmp_path / "converted").mkdir()
    model.save(tmp_path / "converted" / "mae.keras")
    model.encoder.save(tmp_path / "converted" / "encoder.keras")
    assert export_anew(tmp_path / "converted", tmp_path / "model", "--reconstruct") == 0
    signatures = tf.saved_model.load(str(tmp_path / "model")).signatures
    assert set(signatures) == {"features", "reconstruct", "serving_default"}
    noise = np.tile(np.arange(16, dtype="float32"), (2, 1))
    received = signatures["reconstruct"](image=np.zeros((2, 8, 8, 1), "uint8"), noise=tf.constant(noise))
    np.testing.assert_array_equal(received["mask"], noise >= 4)
    assert read_card(tmp_path / "model")["source_license"] == "unknown"


def test_the_card_of_a_checkpoint_is_of_its_step(tmp_path):
    Checkpoints(tmp_path / "checkpoints").write(5, {"weight": np.zeros(1)}, {})
    known = {**CARD, "measured_in_training": {"step": 5, "val_loss": 0.5}}
    card = export_saved_model.card_of_checkpoint(known, RUN, tmp_path)
    assert card == {**known, "training": {"steps": 5, "batch_size": 4, "epochs": 1.0, "seed": 3}, "data": RUN["data"]}
    averaged = {**RUN, "recipe": {**RUN["recipe"], "ema_decay": 0.99}}
    older = {**CARD, "measured_in_training": {"step": 10, "val_loss": 0.5}}
    for card, run in ((known, averaged), (older, RUN)):
        assert "measured_in_training" not in export_saved_model.card_of_checkpoint(card, run, tmp_path)


REFUSED = {
    "missing": (("--model=DIR/missing",), "There is no model at"),
    "existing": (("--output=DIR/export",), "exists already; give another --output, or remove it."),
    "words for layers": (("--layers=0,last",), "layers takes numbers of blocks such as 5,11. Received: '0,last'"),
    "no such layer": (("--layers=2",), "layers must be different numbers of blocks, from -2 to 1. Received: [2]"),
    "resize_size alone": (("--resize_size=9",), "--resize_size is about --resize"),
    "small resize_size": (("--resize", "--resize_size=7"), "must be at least 8"),
    "no resize_size": (("--resize", "--resize_size=0"), "must be an integer of at least 1. Received: 0"),
    "no decoder": (("--reconstruct",), "holds no masked autoencoder but a Classifier"),
    "drop path": (("--drop_path_rate=1",), "drop_path_rate must be at least 0 and below 1. Received: 1.0"),
    "both": (("--reconstruct", "--drop_path_rate=.1"), "--drop_path_rate is about encoders and classifiers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_tool_refuses(name, run_dir, tmp_path, capsys):
    flags, sentence = REFUSED[name]
    given = (f"--model={run_dir}", f"--output={tmp_path / 'model'}")
    assert run_command(export_saved_model, *given, *(flag.replace("DIR", str(run_dir)) for flag in flags)) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error
    assert list(tmp_path.iterdir()) == []


def test_a_linear_probe_has_no_drop_path():
    probe = LinearProbe(VisionTransformer(**TINY_VIT), 2)
    with pytest.raises(ValueError, match="encoder of a linear probe is frozen"):
        export_saved_model.with_drop_path(probe, 0.1)
