"""SavedModels: the contract, and the three ways to build on one, in each of which the encoder learns."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.tiny_vit import TINY_VIT

from keras_mae.models import Classifier, MaskedAutoencoder, VisionTransformer
from keras_mae.training.model_card import FROM_SCRATCH, measured_in_training, read_card, run_card, write_card
from keras_mae.training.run_dir import description_above
from keras_mae.training.saved_model import (
    STRUCTURE,
    SavedModelError,
    export,
    load_encoder,
    load_model,
    named_weights,
)
from keras_mae.training.saved_model_layer import SavedModelLayer


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An exported encoder, and the encoder."""
    encoder = VisionTransformer(**TINY_VIT, dtype="mixed_bfloat16")
    encoder.build()
    folder = tmp_path_factory.mktemp("run") / "export"
    export(encoder, folder)
    return folder, encoder


def same_weights(a, b):
    a, b = named_weights(a), named_weights(b)
    return set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in a)


def test_signatures_are_as_contracted(exported, halves):
    folder, _ = exported
    images, _ = halves
    loaded = tf.saved_model.load(str(folder / "saved_model"))
    assert set(loaded.signatures) == {"features", "serving_default"}
    signature = loaded.signatures["features"]
    (name, spec), *others = signature.structured_input_signature[1].items()
    assert (name, spec.dtype, spec.shape.as_list(), others) == ("image", tf.uint8, [None, 8, 8, 1], [])
    for batch in (1, 5):
        outputs = signature(image=tf.constant(images[:batch]))
        shapes = {name: value.shape.as_list() for name, value in outputs.items()}
        assert shapes == {"class_token": [batch, 16], "patch_mean": [batch, 16], "tokens": [batch, 17, 16]}
    assert len(loaded.variables) == len(load_encoder(folder).variables)
    assert 0 < len(loaded.trainable_variables) < len(loaded.variables)  # the position table is frozen


def test_outputs_equal_the_keras_model(exported, halves):
    folder, _ = exported
    images, _ = halves
    expected = load_model(folder / "encoder.keras")(images)
    received = tf.saved_model.load(str(folder / "saved_model")).signatures["features"](image=tf.constant(images))
    np.testing.assert_allclose(received["tokens"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(received["class_token"], expected[:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(received["patch_mean"], np.mean(expected[:, 1:], axis=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["", "encoder.keras", "saved_model"])
def test_every_form_rebuilds_the_encoder_in_float32(exported, form):
    folder, encoder = exported
    loaded = load_encoder(folder / form)
    assert same_weights(encoder, loaded)
    assert loaded.dtype_policy.name == "float32"
    assert len(loaded.blocks) == 2


def losses_of_fine_tuning(class_token, variables, labels):
    """Of some steps of plain gradient descent, with a head that begins the same each time."""
    head = tf.Variable(np.random.default_rng(0).standard_normal((16, 2)).astype("float32"))
    losses, variables = [], [*variables, head]
    for _ in range(4):
        with tf.GradientTape() as tape:
            logits = tf.matmul(class_token(), head)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.01 * gradient)
        losses.append(float(loss))
    return losses


def test_plain_tensorflow_fine_tunes_it_as_it_does_the_keras_model(exported, halves):
    folder, _ = exported
    images, labels = halves
    original = load_encoder(folder)
    expected = losses_of_fine_tuning(
        lambda: original(images)[:, 0], [v.value for v in original.trainable_variables], labels
    )
    loaded = tf.saved_model.load(str(folder / "saved_model"))
    before = [v.numpy() for v in loaded.trainable_variables]
    features = loaded.signatures["features"]
    losses = losses_of_fine_tuning(
        lambda: features(image=tf.constant(images))["class_token"], loaded.trainable_variables, labels
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert len(set(losses)) == len(losses)
    assert len(before) == len(original.trainable_variables)
    assert all(np.any(v.numpy() != b) for v, b in zip(loaded.trainable_variables, before, strict=True))


def test_a_keras_layer_fine_tunes_it_under_adam(exported, halves):
    folder, _ = exported
    images, labels = halves
    backbone = SavedModelLayer(folder / "saved_model")
    before = [w.numpy() for w in backbone.trainable_weights]
    image = keras.Input((8, 8, 1), dtype="uint8")
    model = keras.Model(image, keras.layers.Dense(2)(backbone(image)["patch_mean"]))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss=loss)
    history = model.fit(images, labels, batch_size=8, epochs=10, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0]
    moved = [np.abs(w.numpy() - b).max() > 0 for w, b in zip(backbone.trainable_weights, before, strict=True)]
    assert len(moved) > 20 and all(moved)


def test_a_classifier_has_both_signatures(tmp_path, halves):
    images, _ = halves
    classifier = Classifier(VisionTransformer(**TINY_VIT, final_norm=False, drop_path_rate=0.1), num_classes=3)
    classifier.build()
    export(classifier, tmp_path / "export")
    loaded = tf.saved_model.load(str(tmp_path / "export" / "saved_model"))
    outputs = loaded.signatures["classify"](image=tf.constant(images))
    np.testing.assert_allclose(outputs["logits"], classifier(images), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.sum(outputs["probabilities"], axis=1), 1, rtol=1e-5)
    assert loaded.signatures["features"](image=tf.constant(images))["tokens"].shape == (16, 17, 16)
    for form in ("classifier.keras", "saved_model"):
        rebuilt = load_model(tmp_path / "export" / form)
        np.testing.assert_allclose(rebuilt(images), classifier(images), rtol=1e-5, atol=1e-6)


RUN = {
    "command": "finetune",
    "recipe": {"resize_size": 9, "batch_size": 8, "seed": 0},
    "data": {"split": "train", "samples": 16, "fingerprint": "abc"},
    "total_steps": 6,
}
LOG = (
    {"step": 3, "loss": 1.0},
    {"step": 3, "val_loss": 0.5, "val_accuracy": 0.75},
    {"step": 6, "val_loss": 0.25, "val_accuracy": 0.5},
    {"step": 6, "val_knn_accuracy": 0.125},
)


@pytest.fixture(scope="module")
def run_dir(exported, tmp_path_factory):
    """A run folder with the recipe, the log and the export of a run."""
    folder = tmp_path_factory.mktemp("run_dir")
    (folder / "recipe.json").write_text(json.dumps(RUN))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LOG))
    card = run_card("keras_mae.finetune", None, "vit_tiny", "/data/halves")
    export(exported[1], folder / "export", card, run_dir=folder)
    return folder


def test_a_saved_model_says_which_run_made_it_wherever_it_is_copied(run_dir, tmp_path):
    shutil.copytree(run_dir / "export" / "saved_model", tmp_path / "alone")
    shutil.copytree(run_dir / "export", tmp_path / "whole")
    for path in ("alone", "whole", "whole/saved_model", "whole/encoder.keras"):
        assert description_above(tmp_path / path) == RUN
        assert read_card(tmp_path / path)["shard_set"] == "halves"
    assert description_above(tmp_path) is None


def test_the_card_of_a_run_says_what_was_trained_how_long_and_how_good_it_became(run_dir):
    card = read_card(run_dir / "export")
    assert (card["source_license"], card["recipe"]) == (FROM_SCRATCH, "vit_tiny")
    assert card["training"] == {"steps": 6, "batch_size": 8, "epochs": 3.0, "seed": 0}
    assert card["data"] == RUN["data"]
    measured = {"step": 6, "val_loss": 0.25, "val_accuracy": 0.5, "val_knn_accuracy": 0.125}
    assert card["measured_in_training"] == measured
    assert measured_in_training(run_dir, best=True)["measured_in_training"] == {
        "step": 3,
        "val_loss": 0.5,
        "val_accuracy": 0.75,
    }
    readme = (run_dir / "export" / "README.md").read_text()
    assert "## training" in readme and "- epochs: 3.0" in readme and "licence of the software" not in readme


def test_the_licence_travels_to_what_is_trained_further(run_dir, tmp_path):
    card = {"source_license": "CC BY-NC 4.0", "source": "weights.pth"}
    (tmp_path / "card.json").write_text(json.dumps(card))
    derived = run_card("keras_mae.finetune", tmp_path, "vit_tiny", "/data/halves")
    assert (derived["source_license"], derived["began_with"]) == ("CC BY-NC 4.0", card)
    (tmp_path / "card.json").unlink()
    assert run_card("keras_mae.finetune", tmp_path, "vit_tiny", "x")["source_license"] == "unknown"


def test_a_card_may_name_a_folder_whose_name_is_no_text(tmp_path):
    write_card(tmp_path, run_card("keras_mae.pretrain", None, "vit_tiny", "/data/caf\udce9"))
    assert read_card(tmp_path)["shard_set"] == "caf\udce9"
    assert r"- shard_set: caf\udce9" in (tmp_path / "README.md").read_text()


def test_a_model_of_uint16_arrays_takes_them_as_saved_model(tmp_path, tiny_encoder, halves):
    images = halves[0].astype("uint16") * 257
    export(tiny_encoder, tmp_path / "export", image_dtype="uint16")
    path = tmp_path / "export" / "saved_model"
    signature = tf.saved_model.load(str(path)).signatures["features"]
    assert signature.structured_input_signature[1]["image"].dtype == tf.uint16
    tokens = signature(image=tf.constant(images))["tokens"]
    np.testing.assert_allclose(tokens, tiny_encoder(images), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(tokens, load_encoder(path)(halves[0]), rtol=1e-4, atol=1e-4)  # 65535 / 255 = 257
    with pytest.raises(ValueError, match="image_dtype must be one of uint8, uint16. Received: 'int32'"):
        export(tiny_encoder, tmp_path / "other", image_dtype="int32")
    assert not (tmp_path / "other").exists()


def test_a_kill_leaves_no_half_of_an_old_export(tmp_path, tiny_encoder, monkeypatch):
    folder, remove = tmp_path / "export", shutil.rmtree

    def killed(path, **options):
        if folder.name in str(path) and path.exists():
            (path / "encoder.keras").unlink()
            raise KeyboardInterrupt
        remove(path, **options)

    export(tiny_encoder, folder)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            export(tiny_encoder, folder)
    assert same_weights(load_encoder(folder / "encoder.keras"), tiny_encoder)
    export(tiny_encoder, folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_the_encoder_inside_a_saved_autoencoder_can_be_taken(tmp_path, tiny_encoder):
    model = MaskedAutoencoder(tiny_encoder, 16, 1, 2)
    model.build()
    model.save(tmp_path / "mae.keras")
    assert same_weights(load_encoder(tmp_path / "mae.keras"), tiny_encoder)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(SavedModelError, match="no model at"):
        load_model(tmp_path / "missing.keras")
    with pytest.raises(SavedModelError, match="holds 0 .keras files"):
        load_model(tmp_path)
    (tmp_path / "broken.keras").write_bytes(b"nonsense")
    with pytest.raises(SavedModelError, match="broken.keras cannot be loaded"):
        load_model(tmp_path / "broken.keras")
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(tmp_path / "other.keras")
    with pytest.raises(SavedModelError, match="not a model of keras_mae"):
        load_model(tmp_path / "other.keras")


def test_a_saved_model_of_others_is_refused(tmp_path, exported):
    folder, _ = exported
    structure = folder / "saved_model" / STRUCTURE
    content = structure.read_text()
    assert json.loads(content)["model"]["registered_name"] == "keras_mae>VisionTransformer"
    structure.unlink()
    try:
        with pytest.raises(SavedModelError, match="not written by keras_mae"):
            load_model(folder / "saved_model")
    finally:
        structure.write_text(content)


@pytest.mark.parametrize("damage", ["cut variables", "no variables", "bad structure", "cut keras file"])
def test_a_damaged_model_is_refused_in_one_sentence(tmp_path, exported, damage):
    folder = shutil.copytree(exported[0], tmp_path / "export")
    variables = folder / "saved_model" / "variables" / "variables.data-00000-of-00001"
    path = folder / "saved_model"
    if damage == "cut variables":
        variables.write_bytes(variables.read_bytes()[:1000])
    elif damage == "no variables":
        variables.unlink()
    elif damage == "bad structure":
        (path / STRUCTURE).write_text("{")
    else:
        path = folder / "encoder.keras"
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SavedModelError, match=str(path)):
        load_model(path)


def test_only_an_export_is_replaced(tmp_path, tiny_encoder):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "thesis.txt").write_text("years of work")
    with pytest.raises(SavedModelError, match="exists and is no export of a model"):
        export(tiny_encoder, tmp_path / "runs")
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "thesis.txt"]


def test_the_licence_of_a_tokenizer_is_that_of_what_learned_from_it(tmp_path):
    (tmp_path / "card.json").write_text('{"source_license": "CC BY-NC 4.0"}')
    card = run_card("keras_mae.pretrain", None, "vit_base", "shards", tmp_path / "tokenizer.keras")
    assert card["source_license"] == "CC BY-NC 4.0" and card["target"] == {"source_license": "CC BY-NC 4.0"}
    (tmp_path / "card.json").unlink()
    card = run_card("keras_mae.pretrain", None, "vit_base", "shards", tmp_path / "tokenizer.keras")
    assert card["source_license"] == FROM_SCRATCH and "target" not in card
